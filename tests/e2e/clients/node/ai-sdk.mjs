// Vercel's AI SDK with its provider of Black Forest Labs, and with that of OpenAI.
import { createBlackForestLabs } from "@ai-sdk/black-forest-labs";
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";
import { key, picture, prompt, run, url } from "./outcome.mjs";

const bfl = createBlackForestLabs({ apiKey: key, baseURL: `${url}/v1` });
const openai = createOpenAI({ apiKey: key, baseURL: `${url}/v1` });

async function draw(model, fields) {
  const { image } = await generateImage({ model, prompt, maxRetries: 0, ...fields });
  return image.uint8Array;
}

await run({
  text: () => draw(bfl.image("flux-dev"), { size: "512x512" }),
  ultra: () => draw(bfl.image("flux-pro-1.1-ultra"), { aspectRatio: "1:1" }),
  flux2: () => draw(bfl.image("flux-2-pro"), { size: "512x512" }),
  kontext: () => draw(bfl.image("flux-kontext-pro"), { prompt: { text: prompt, images: [picture()] } }),
  size: () => draw(bfl.image("flux-dev"), { size: "100x512" }),
  key: () => draw(bfl.image("flux-dev"), { size: "512x512" }),
  "gpt-image": () => draw(openai.image("gpt-image-1"), { size: "512x512" }),
});
