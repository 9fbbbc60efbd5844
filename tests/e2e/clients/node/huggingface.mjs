// @huggingface/inference with its provider of Black Forest Labs. Its host is fixed in the code, so fetch is given one.
import { InferenceClient } from "@huggingface/inference";
import { key, prompt, run, url } from "./outcome.mjs";

const HOST = "https://api.us1.bfl.ai";

async function draw(model, parameters) {
  async function here(asked, init) {
    const address = String(asked);
    if (address.startsWith(HOST)) return fetch(address.replace(HOST, url), init);
    // The hub, which is asked what the provider calls the model.
    const mapping = { "black-forest-labs": { providerId: model.split("/")[1], status: "live", task: "text-to-image" } };
    return Response.json({ inferenceProviderMapping: mapping });
  }
  const client = new InferenceClient(key, { fetch: here });
  const answer = await client.textToImage({ provider: "black-forest-labs", model, inputs: prompt, parameters });
  return Buffer.from(await answer.arrayBuffer());
}

// Between two polls nothing of the client keeps the process alive.
const awake = setInterval(() => {}, 1000);
await run({
  text: () => draw("here/flux-dev", { width: 512, height: 512 }),
  ultra: () => draw("here/flux-pro-1.1-ultra", { aspect_ratio: "1:1" }),
  flux2: () => draw("here/flux-2-pro", { width: 512, height: 512 }),
  size: () => draw("here/flux-dev", { width: 100, height: 512 }),
  key: () => draw("here/flux-dev", {}),
});
clearInterval(awake);
