// npm's bfl-api, which speaks to nothing but https.
import { BflAPI } from "bfl-api";
import { fetched, key, picture, prompt, run, url } from "./outcome.mjs";

const api = new BflAPI({ apiKey: key, baseUrl: url, logLevel: "NONE" });

async function draw(begin) {
  const task = await begin;
  const answer = await api.waitForResult(task.id, {
    pollingUrl: task.polling_url, pollInterval: 0.5, timeout: 30, showSpinner: false,
  });
  return fetched(answer.result.sample);
}

await run({
  text: () => draw(api.generateFluxDev({ prompt, width: 512, height: 512 })),
  ultra: () => draw(api.generateFluxProUltra({ prompt, aspect_ratio: "1:1" })),
  flux2: () => draw(api.generateFlux2Pro({ prompt, width: 512, height: 512 })),
  kontext: () => draw(api.generateKontextPro({ prompt, input_image: picture().toString("base64") })),
  size: () => draw(api.generateFluxDev({ prompt, width: 100, height: 512 })),
  key: () => draw(api.generateFluxDev({ prompt, width: 512, height: 512 })),
});
