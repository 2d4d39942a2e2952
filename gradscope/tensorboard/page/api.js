/** Asks TensorBoard's server, as docs/http_api.md describes. Addresses are relative, so any path prefix works. */

/** What went wrong, as a sentence that may be shown. */
class ApiError extends Error {}

/**
 * @param {string} route
 * @param {Record<string, string | number | null>} [parameters] those that are null are left out
 * @returns {Promise<any>}
 */
export async function askJson(route, parameters = {}) {
  const reply = await ask(route, parameters);
  return reply.json();
}

/**
 * @param {string} route
 * @param {Record<string, string | number | null>} parameters
 * @returns {Promise<string>}
 */
export async function askText(route, parameters) {
  const reply = await ask(route, parameters);
  return reply.text();
}

/**
 * A binary reply: the fields of its header, and `data`.
 *
 * @param {string} route
 * @param {Record<string, string | number | null>} parameters
 * @returns {Promise<any>}
 */
export async function askTable(route, parameters) {
  const reply = await ask(route, parameters);
  const bytes = await reply.arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const data = new Float32Array(bytes, 4 + length);
  if (data.length !== header.shape[0] * header.shape[1]) {
    throw new ApiError(`Expected ${header.shape.join(" × ")} numbers from ${route}, found ${data.length}. Reload the page.`);
  }
  return { ...header, data };
}

/**
 * @param {string} route
 * @param {Record<string, string | number | null>} parameters
 * @returns {Promise<Response>}
 */
async function ask(route, parameters) {
  const given = Object.entries(parameters).flatMap(([key, value]) => (value === null ? [] : [[key, String(value)]]));
  const query = new URLSearchParams(given).toString();
  let reply;
  try {
    reply = await fetch(`./${route}${query && `?${query}`}`);
  } catch {
    throw new ApiError("TensorBoard does not answer. Check that it is still running; the page tries again by itself.");
  }
  if (!reply.ok) throw new ApiError(await sentence(reply));
  return reply;
}

/**
 * @param {Response} reply
 * @returns {Promise<string>}
 */
async function sentence(reply) {
  try {
    return String((await reply.json()).error);
  } catch {
    return `TensorBoard answered with status ${reply.status}; its terminal says why.`;
  }
}
