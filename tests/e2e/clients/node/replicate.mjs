// Replicate's client for JavaScript.
import Replicate from "replicate";
import { fetched, key, picture, prompt, run, url } from "./outcome.mjs";

const client = new Replicate({ auth: key, baseUrl: `${url}/v1`, useFileOutput: false });

async function draw(name, fields) {
  const output = await client.run(`black-forest-labs/${name}`, { input: { prompt, ...fields } });
  return fetched(Array.isArray(output) ? output[0] : output);
}

await run({
  text: () => draw("flux-dev", { width: 512, height: 512 }),
  ultra: () => draw("flux-1.1-pro-ultra", { aspect_ratio: "1:1" }),
  flux2: () => draw("flux-2-pro", { width: 512, height: 512 }),
  kontext: () => draw("flux-kontext-pro", { input_image: picture(), aspect_ratio: "match_input_image" }),
  size: () => draw("flux-dev", { width: 100, height: 512 }),
  key: () => draw("flux-dev", {}),
});
