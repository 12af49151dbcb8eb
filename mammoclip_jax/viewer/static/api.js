// What the server answers: JSON, or a line of JSON with bytes behind it.

async function answer(path, parameters, signal) {
  const query = new URLSearchParams(Object.entries(parameters || {}).filter(([, value]) => value !== "" && value != null));
  const response = await fetch(query.size ? `${path}?${query}` : path, { signal, credentials: "same-origin" });
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error || `the server answered ${response.status}`);
  }
  return response;
}

export async function json(path, parameters, signal) {
  return (await answer(path, parameters, signal)).json();
}

export async function framed(path, parameters, signal) {
  const buffer = await (await answer(path, parameters, signal)).arrayBuffer();
  const end = new Uint8Array(buffer).indexOf(10);
  const about = JSON.parse(new TextDecoder().decode(buffer.slice(0, end)));
  return { about, bytes: buffer.slice(end + 1) };
}

export const wasAborted = (error) => error.name === "AbortError";

// The last answers by their key, so that going back is at once.
export class Kept {
  constructor(most) { this.most = most; this.map = new Map(); }
  get(key, make) {
    if (!this.map.has(key)) {
      const made = make();
      made.catch(() => this.map.delete(key));
      this.map.set(key, made);
    }
    const found = this.map.get(key);
    this.map.delete(key);
    this.map.set(key, found);
    while (this.map.size > this.most) this.map.delete(this.map.keys().next().value);
    return found;
  }
}
