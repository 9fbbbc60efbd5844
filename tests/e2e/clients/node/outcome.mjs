// What every client here is asked for by FLUX_CASE, and how it tells what came of it.
import { readFileSync, writeFileSync } from "node:fs";

export const url = process.env.FLUX_URL;
export const key = process.env.FLUX_KEY;
export const prompt = "a red apple";
/** A PNG to edit. */
export const picture = () => readFileSync(process.env.FLUX_PICTURE);
export const fetched = async (link) => Buffer.from(await (await fetch(link)).arrayBuffer());

/** Keep the picture of the case that is asked for, or print the client's error and end with status 3. */
export async function run(cases) {
  try {
    writeFileSync(process.env.FLUX_OUT, await cases[process.env.FLUX_CASE]());
  } catch (error) {
    console.log(error.message, error.responseBody ?? "", JSON.stringify(error.httpResponse ?? ""));
    process.exit(3);
  }
}
