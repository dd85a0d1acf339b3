// Errors that people read.

const PASSING = new Set([429, 502, 503, 504]);
const CONSTRAINT_FIELDS = new Set(["constraint", "kind", "regex", "choices", "json_schema", "terminator"]);

/** What went wrong, as a sentence; `passing`: it may work later. */
export class Problem extends Error {
  constructor(sentence, { status = 0, code = "", field = "", requestId = "", passing = PASSING.has(status) } = {}) {
    super(requestId ? `${sentence} (request ${requestId})` : sentence);
    this.status = status;
    this.code = code; // such as SESSION_IDLE
    this.field = field; // of the request, that is wrong
    this.passing = passing;
  }

  /** Whether a server could not read a resume token, and it was not another model's. */
  get isOfTokens() {
    return this.code.startsWith("RESUME_TOKEN_") && this.code !== "RESUME_TOKEN_OTHER_MODEL";
  }

  /** Whether it is about what the text must match. */
  get isOfConstraint() {
    return CONSTRAINT_FIELDS.has(this.field);
  }

  /** Reads an error in OpenAI's form; the last frame of a WebSocket has what else would be in the head of an answer. */
  static fromBody(body, status = body?.error?.status ?? 0, requestId = body?.error?.request_id ?? "") {
    const { message, code, param } = body?.error ?? {};
    const told = CONSTRAINT_FIELDS.has(param) ? message.replace(/^\w+: /, "") : message; // it stands at the field
    return new Problem(sentenceOf(told || `the gateway answered with status ${status}`), {
      status,
      code: String(code ?? "").toUpperCase(),
      field: String(param ?? ""),
      passing: PASSING.has(status) || String(code).toUpperCase() === "SESSION_IDLE",
      requestId: String(message).includes(requestId) ? "" : requestId,
    });
  }
}

/** A message of a program as a sentence. */
export function sentenceOf(message) {
  const text = String(message).trim();
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…)]$/.test(text) ? "" : ".");
}
