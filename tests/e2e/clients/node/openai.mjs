// OpenAI's client for JavaScript.
import OpenAI, { toFile } from "openai";
import { key, picture, prompt, run, url } from "./outcome.mjs";

const client = new OpenAI({ apiKey: key, baseURL: `${url}/v1`, maxRetries: 0 });
const decoded = (answer) => Buffer.from(answer.data[0].b64_json, "base64");

const draw = async (model, size = "512x512", fields = {}) =>
  decoded(await client.images.generate({ model, prompt, size, ...fields }));
const file = () => toFile(picture(), "picture.png", { type: "image/png" });
const edit = async (fields) => decoded(await client.images.edit({ image: await file(), prompt, ...fields }));

async function stream() {
  const events = await client.images.generate({
    model: "gpt-image-1", prompt, size: "512x512", stream: true, partial_images: 2,
  });
  let last;
  for await (const event of events) last = event;
  if (last.type !== "image_generation.completed") throw new Error(`The last event is ${last.type}.`);
  return Buffer.from(last.b64_json, "base64");
}

await run({
  text: () => draw("flux-dev"),
  ultra: () => draw("flux-pro-1.1-ultra", "1024x1024"),
  flux2: () => draw("flux-2-pro"),
  kontext: () => edit({ model: "flux-kontext-pro" }),
  size: () => draw("flux-dev", "100x512"),
  key: () => draw("flux-dev"),
  "gpt-image": () => draw("gpt-image-1", "512x512", { quality: "low" }),
  mask: async () => edit({ model: "gpt-image-1", mask: await file() }),
  stream,
});
