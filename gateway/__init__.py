"""The gateway: HTTP, OpenAI's completions and a page in the browser, as one more client of Rill's servers."""
