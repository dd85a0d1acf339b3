// What the text must match, as people write it and as requests have it.
//
// Settings hold it as the JSON text of a Constraint of rill.proto, which compares like any text; FREE for none.

export const FREE = "{}";

const LINES = "one a line; \\n in it is a line end";
/** What the field means and holds, by the fields of Constraint; each example is a name and what stands in the field. */
export const KINDS = Object.freeze({
  regex: {
    label: "Regular expression",
    examples: [
      ["a sentence", "[A-Z][a-z]+( [a-z]+){2,8}[.!?]"],
      ["a short answer", "(Ay|No), my (lord|lady)[.!]"],
    ],
  },
  choices: { label: `Choices, ${LINES}`, examples: [["yes or no", "yes\nno"], ["three answers", "I do.\nI will.\nNever!"]] },
  jsonSchema: {
    label: "JSON schema",
    examples: [
      [
        "an object",
        '{"type": "object",\n "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},\n "required": ["name", "age"]}',
      ],
      ["a list of words", '{"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 5}'],
    ],
  },
});

/** Reads a field; one that holds nothing leaves the text free. */
export function constraintOf(kind, text) {
  switch (kind) {
    case "regex": {
      const regex = text.replace(/\n+$/, "");
      return regex ? JSON.stringify({ regex }) : FREE;
    }
    case "choices": {
      const texts = readLines(text);
      return texts.length ? JSON.stringify({ choices: { text: texts } }) : FREE;
    }
    case "jsonSchema":
      return text.trim() ? JSON.stringify({ jsonSchema: text.trim() }) : FREE;
    default:
      return FREE;
  }
}

/** Reads strings, one on each line; \n, \t, \r and \\ in them stand for what cannot be typed there. */
export function readLines(text) {
  const signs = { n: "\n", t: "\t", r: "\r", "\\": "\\" };
  return text
    .split("\n")
    .filter((line) => line)
    .map((line) => line.replace(/\\([ntr\\])/g, (_, sign) => signs[sign]));
}

/** Describes what is wrong with a constraint as far as no server is needed, as a sentence; else an empty text. */
export function faultOfConstraint(constraint) {
  if (constraint === null) return "";
  const { regex, choices, jsonSchema } = JSON.parse(constraint);
  if (![regex ?? "", jsonSchema ?? "", ...(choices?.text ?? [])].every((text) => text.isWellFormed())) {
    return "There is half a character (a lone surrogate) in it; remove it.";
  }
  if (jsonSchema === undefined) return "";
  try {
    const schema = JSON.parse(jsonSchema);
    return typeof schema === "object" && schema !== null && !Array.isArray(schema) ? "" : "A JSON schema is an object.";
  } catch (error) {
    return `This is not JSON: ${error.message}.`;
  }
}

/** Returns the fields of a request for OpenAI's completions; a text that continues from a token may lose its constraint. */
export function completionFields(constraint, hasToken) {
  if (constraint === null) return {};
  if (constraint === FREE) return hasToken ? { response_format: { type: "text" } } : {};
  const { regex, choices, jsonSchema } = JSON.parse(constraint);
  return { structured_outputs: { regex, choice: choices?.text, json: jsonSchema } };
}

/** Returns the parameters of Rill's client in Python. */
export function pythonParameters(constraint, hasToken) {
  if (constraint === null) return {};
  if (constraint === FREE) return hasToken ? { unconstrained: true } : {};
  const { regex, choices, jsonSchema } = JSON.parse(constraint);
  return { regex, choices: choices?.text, json_schema: jsonSchema };
}
