// The page: one conversation, sent whole with every question to the endpoint that serves this page.
// Whatever the model says is put in as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const log = $("log"), question = $("question"), system = $("system");

let messages = []; // of user and assistant, in turn; what the model is still fed, `leftOut` aside
let leftOut = 0;   // messages at the beginning that no longer fit
let model = null;  // as GET /v1/models describes it
let token = "";
let request = null; // AbortController of the answer that is coming

class Refusal extends Error {
  constructor(status, error) {
    super(error.message || `the server answered ${status}`);
    this.status = status;
    this.code = error.code;
  }
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) $("access").hidden = false;
  throw new Refusal(response.status, body.error || {});
}

async function connect() {
  try {
    model = (await (await call("/v1/models")).json()).data[0];
    $("model").textContent = model.id;
    $("access").hidden = true;
    say("");
  } catch (error) {
    say(explain(error));
  }
}

function say(text) {
  $("status").textContent = text;
}

function explain(error) {
  if (error instanceof Refusal) {
    return error.status === 401 && !token ? "" : error.message;
  }
  return "The server cannot be reached.";
}

function show(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.dir = "auto";
  item.textContent = text;
  log.append(item);
  $("empty").hidden = true;
  scroll(true);
  return item;
}

function scroll(always) {
  const main = document.querySelector("main");
  if (always || main.scrollHeight - main.scrollTop - main.clientHeight < 120) main.scrollTop = main.scrollHeight;
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
}

// The chunks of a stream of server-sent events, parsed.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Ask with as much of the conversation as fits: the oldest question and its answer go first. A question that
// fits with nothing is refused, and leaves out nothing.
async function open() {
  for (let left = leftOut; ; left += 2) {
    const kept = messages.slice(left);
    const text = system.value;
    if (text.trim()) kept.unshift({ role: "system", content: text });
    const body = { model: model.id, messages: kept, stream: true, max_completion_tokens: model.max_new_tokens };
    try {
      const sent = { method: "POST", body: JSON.stringify(body), signal: request.signal };
      const response = await call("/v1/chat/completions", sent);
      if (left && !leftOut) log.insertBefore(noteOfLeftOut(), log.lastElementChild);
      leftOut = left;
      return response;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || messages.length - left < 3) throw error;
    }
  }
}

function noteOfLeftOut() {
  const note = document.createElement("li");
  note.className = "note";
  note.textContent = "The context is full: from here on the model no longer sees the oldest turns.";
  return note;
}

async function ask(text) {
  say("");
  const asked = show("user", text);
  messages.push({ role: "user", content: text });
  const mine = messages, before = leftOut; // another list after a reset
  request = new AbortController();
  busy(true);
  let item = null, said = "", remark = "";
  try {
    const response = await open();
    item = show("assistant coming", "");
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Refusal(500, chunk.error);
      const choice = chunk.choices[0];
      said += choice?.delta.content || "";
      if (choice?.finish_reason === "length") remark = `The answer was cut at ${model.max_new_tokens} tokens.`;
      item.textContent = said;
      scroll(false);
    }
    if (!said) remark = "The answer is empty; the conversation stays as it was.";
  } catch (error) {
    if (error.name !== "AbortError") remark = explain(error);
    if (error.code === "model_not_found") model = null; // another is served here by now: ask for its name
  }
  if (mine !== messages) return; // reset meanwhile
  request = null;
  busy(false);
  item?.classList.remove("coming");
  if (said) {
    messages.push({ role: "assistant", content: said });
  } else {
    messages.pop();
    asked.remove();
    item?.remove();
    leftOut = before; // what made room for it is seen again
    if (!leftOut) log.querySelector(".note")?.remove();
    $("empty").hidden = messages.length > 0;
    if (!question.value) question.value = text;
    resize();
  }
  say(remark);
  question.focus();
}

function reset() {
  request?.abort();
  request = null;
  messages = [];
  leftOut = 0;
  log.replaceChildren();
  $("empty").hidden = false;
  busy(false);
  say("");
  question.focus();
}

function resize() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!model) await connect(); // the server was not there when the page was opened
  const text = question.value;
  if (!text.trim() || request || !model) return;
  question.value = "";
  resize();
  ask(text);
});

question.addEventListener("keydown", (event) => {
  // While Chinese or Japanese is being composed, Enter chooses a word; Safari says so by key code 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $("ask").requestSubmit();
});

question.addEventListener("input", resize);
$("stop").addEventListener("click", () => request?.abort());
$("reset").addEventListener("click", reset);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  connect();
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  token = given;
  history.replaceState(null, "", location.pathname); // out of the address bar and the history
}
connect();
