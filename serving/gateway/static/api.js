// The way to the gateway: the key, whole answers, and streams of server-sent events.

const KEY = "shoal-api-key";

/** The API key that was given in this tab; "": none. */
export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

/** Keep a key until the tab is closed. */
export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** An answer that is an error. `status` is that of HTTP, 0: the gateway did not answer. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, body, signal) {
  const headers = {};
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  const options = { headers, signal };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    options.method = "POST";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The gateway does not answer. Is it running?");
  }
  if (response.ok) return response;
  throw new ApiError(response.status, await said(response));
}

async function said(response) {
  try {
    const told = await response.json();
    return told.error?.message ?? told.error ?? told.message;
  } catch {
    return `The gateway answered with ${response.status}.`;
  }
}

/** The answer to a GET, or to a POST where there is a body. */
export async function ask(path, body, signal) {
  return (await send(path, body, signal)).json();
}

/** The events of a stream, until it ends; one that tells of an error is thrown. */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError(0, "The stream ended before the answer did.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new ApiError(0, event.error.message);
      yield event;
    }
  }
}
