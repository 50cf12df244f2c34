// ---- asking the files beside this page, with onnxruntime-web, one thread ------------------------------------------------------------------
const RUNTIME = "./runtime/ort.wasm.bundle.min.js", WASM = "runtime/ort-wasm-simd-threaded.wasm";
const LAST = 31, PIXELS = 25e6, WARM = 300, BLOCK = 4, BLOCKS = 5; // milliseconds; browsers' clocks tick once in 0.1 ms, or in 1 ms
let queue = Promise.resolve(), runtime, decoded = {};

function next(work) { // one after the other, and what was drawn or typed meanwhile comes between
  const done = queue.then(() => new Promise((go) => setTimeout(go))).then(work);
  queue = done.catch(() => {});
  return done;
}

async function bytes(path) {
  const answer = await fetch(path).catch(() => { throw new Error(`${path} does not come; is the host still there?`); });
  if (!answer.ok) throw new Error(`${path} is not there (${answer.status}); copy the whole folder to the host`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function models() {
  if (location.protocol === "file:")
    throw new Error("A page that is opened as a file may not read what lies beside it. Serve this folder, as `python -m http.server` does, and open that address.");
  const about = JSON.parse(new TextDecoder().decode(await bytes("models.json")));
  for (const model of about.models) {
    model.times = [];
    model.opened = next(() => open(model)).catch((error) => {
      model.error = `cannot be run here: ${brief(error)}`;
      throw new Error(`${model.name} ${model.error}`);
    }).finally(() => refresh(model));
    model.opened.catch(() => {}); // who asks is told
  }
  Promise.allSettled(about.models.map((one) => one.opened)).then(keep);
  return about.models;
}

function keep() { // for when the host cannot be reached; browsers do so for https and localhost
  if (navigator.serviceWorker && isSecureContext) navigator.serviceWorker.register("offline.js").catch(() => {});
}

function brief(error) { return String(error && error.message || error).split("\n")[0].slice(0, 300); }

async function open(model) {
  runtime ||= (async () => {
    const ort = await import(RUNTIME);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = await bytes(WASM);
    return ort;
  })();
  const ort = await runtime;
  model.session = await ort.InferenceSession.create(await bytes(model.file), { executionProviders: ["wasm"] });
  const pixels = new Uint8Array(model.shape.reduce((a, b) => a * b));
  await timed(model, pixels, WARM);
  model.times = [];
  for (let block = 0; block < BLOCKS; block++) await timed(model, pixels);
}

// What is computed, again and again where the clock would see too little of it; and the latency: the median of the last times.
async function timed(model, pixels, least = BLOCK) {
  const begin = performance.now();
  let found, took, runs = 0;
  do { found = await compute(model, pixels); runs++; took = performance.now() - begin; } while (took < least);
  model.times = [...model.times, took / runs].slice(-LAST);
  model.latency_ms = median(model.times);
  return { ...found, took: took / runs };
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// Logits of one image, and probabilities: those of the file, or the softmax of its logits.
async function compute({ session, shape: [height, width, channels], input, outputs, classes }, pixels) {
  const { Tensor } = await runtime, area = height * width, plain = input.type === "uint8";
  const values = plain ? new Uint8Array(pixels.length) : new Float32Array(pixels.length);
  for (let at = 0; at < area; at++) for (let part = 0; part < channels; part++) {
    const value = pixels[at * channels + part];
    values[input.last ? at * channels + part : part * area + at] = plain ? value : value / 255;
  }
  const image = new Tensor(input.type, values, input.last ? [1, height, width, channels] : [1, channels, height, width]);
  const found = await session.run({ [input.name]: image }, Object.values(outputs)), logits = found[outputs.logits].data;
  if (logits.length !== classes.length) throw new Error(`it gives ${logits.length} numbers for ${classes.length} classes`);
  return { logits, probabilities: outputs.probabilities ? found[outputs.probabilities].data : softmax(logits) };
}

function softmax(logits) {
  const most = Math.max(...logits), powers = Array.from(logits, (one) => Math.exp(one - most)), sum = powers.reduce((a, b) => a + b);
  return powers.map((one) => one / sum);
}

function largest(values) { return values.reduce((best, one, at) => (one > values[best] ? at : best), 0); }

async function answer(model, body) {
  await model.opened;
  const begin = performance.now(), pixels = await pixelsOf(model, body), seen = performance.now() - begin;
  const { probabilities, took } = await next(() => timed(model, pixels));
  if (!probabilities.every(Number.isFinite)) throw new Error(`${model.name} gives NaN or infinity for this`);
  refresh(model);
  const index = largest(probabilities), last = `median of the last ${model.times.length}: ${model.latency_ms.toFixed(2)} ms`;
  const time = `${body === pixels ? "" : `picture ${seen.toFixed(1)}, `}compute ${took.toFixed(2)} ms; ${last}`;
  return { label: model.classes[index], index, probability: probabilities[index], probabilities: Array.from(probabilities), pixels, time };
}

async function evidence(model, body) {
  await model.opened;
  const version = state.version, pixels = await pixelsOf(model, body), [height, width, channels] = model.shape, colour = background(pixels, model.shape);
  const score = (logits, at) => logits[at] - logits.reduce((a, b) => a + b) / logits.length;
  const whole = await next(() => compute(model, pixels)), index = largest(whole.probabilities), most = score(whole.logits, index);
  const total = new Float64Array(height * width), count = new Float64Array(height * width);
  for (const square of squares(model.shape)) {
    if (version !== state.version) break; // nobody waits for it any more
    const covered = pixels.slice();
    inside(square, width, (at) => covered.set(colour, at * channels));
    const cost = most - score((await next(() => compute(model, covered))).logits, index);
    inside(square, width, (at) => { total[at] += cost; count[at]++; });
  }
  return { label: model.classes[index], evidence: Array.from({ length: height }, (_, row) =>
    Array.from({ length: width }, (_, column) => total[row * width + column] / (count[row * width + column] || 1))) };
}

async function pixelsOf(model, body) {
  if (body instanceof Uint8Array) return body;
  const [height, width, channels] = model.shape;
  if (channels !== 1 && channels !== 3) throw new Error(`${model.name} takes ${channels} channels; a picture has 1 or 3`);
  if (decoded.body !== body) decoded = { body, found: decode(body) };
  const { rgba, size } = await decoded.found;
  return fitted(flat(rgba, channels), [...size, channels], [height, width], model.resize);
}

async function decode(body) { // turned as its EXIF data says; what is transparent becomes white
  const how = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(body, how).catch(() => { throw new Error("this is no picture that can be read here; take a PNG or JPEG file"); });
  const size = [bitmap.height, bitmap.width], paper = document.createElement("canvas");
  if (size[0] * size[1] > PIXELS) throw new Error(`${size[1]} x ${size[0]} pixels are more than ${PIXELS / 1e6} million; take a smaller picture`);
  [paper.height, paper.width] = size;
  const context = paper.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; context.fillRect(0, 0, paper.width, paper.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { rgba: context.getImageData(0, 0, paper.width, paper.height).data, size };
}
