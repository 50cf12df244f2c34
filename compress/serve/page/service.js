// ---- asking the service ---------------------------------------------------------------------------------------------------------
async function ask(path, body, type) {
  const headers = state.token ? { authorization: "Bearer " + state.token } : {};
  if (type) headers["content-type"] = type;
  const answer = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body });
  if (answer.status === 401) { $("ask").hidden = false; $("token").focus(); throw new Error("a token is needed"); }
  const found = await answer.json();
  if (!answer.ok) { const error = new Error(found.detail); error.later = Number(answer.headers.get("retry-after")); throw error; }
  return found;
}

async function models() {
  const found = (await ask("v1/models")).models;
  $("ask").hidden = true;
  return found;
}

async function answer(model, body, type) {
  const begin = performance.now(), seen = type === RAW ? "" : "?seen=true";
  const { predictions: [found], timing } = await ask(`v1/models/${model.name}/predict${seen}`, body, type), trip = performance.now() - begin;
  const parts = `decode ${timing.decode_ms.toFixed(2)}, wait ${timing.wait_ms.toFixed(2)}, compute ${timing.compute_ms.toFixed(2)} ms`;
  const pixels = seen ? Uint8Array.from(atob(found.pixels), (letter) => letter.charCodeAt(0)) : body;
  return { ...found, pixels, time: `${parts}; here and back ${trip.toFixed(1)} ms` };
}

function evidence(model, body, type) { return ask(`v1/models/${model.name}/explain`, body, type); }

$("ask").addEventListener("submit", (event) => { event.preventDefault(); state.token = $("token").value; loadModels(); });
