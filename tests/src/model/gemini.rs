//! The Gemini API, as Gemini CLI 0.61 uses it.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::DONE;
use super::conversation::{tool, workspace};
use super::reply::{self, Events, TOKENS_CACHED, TOKENS_IN, TOKENS_OUT};
use super::script::Script;

pub async fn answer(script: &Script, request: &Value, model: &str, verb: &str) -> Response {
    if verb == "countTokens" {
        return reply::json(StatusCode::OK, &json!({"totalTokens": TOKENS_IN}));
    }
    match script {
        Script::Hang => return reply::hang().await,
        Script::Error { status, retry_after } => return reply::error(*status, *retry_after, &error(*status, *retry_after)),
        _ => {}
    }
    let parts = parts(script, request);
    if verb == "generateContent" {
        return reply::json(StatusCode::OK, &chunk(model, &parts, true));
    }
    let (script, model) = (script.clone(), model.to_owned());
    reply::events(async move |events| stream(&events, &script, &model, &parts).await)
}

/// Words and calls of this turn. A request for JSON of a shape gets JSON of that shape.
fn parts(script: &Script, request: &Value) -> Vec<Value> {
    let config = &request["generationConfig"];
    let schema = config.get("responseJsonSchema").or_else(|| config.get("responseSchema"));
    if let Some(schema) = schema {
        return vec![json!({"text": shaped(schema).to_string()})];
    }
    let declared =
        request["tools"].as_array().into_iter().flatten().filter_map(|tool| tool["functionDeclarations"].as_array()).flatten();
    let offered: Vec<&str> = declared.filter_map(|function| function["name"].as_str()).collect();
    let Some(step) = script.step(turn(request)).filter(|_| !offered.is_empty()) else {
        return vec![json!({"text": DONE})];
    };
    let workspace = workspace(request);
    let calls = step.calls.iter().filter_map(|call| tool(call, &offered, workspace.as_deref()));
    let id = || format!("call_{:08x}", rand::random::<u32>());
    let calls = calls
        .map(|(name, args)| json!({"functionCall": {"name": name, "args": args, "id": id()}, "thoughtSignature": "dGVzdA=="}));
    std::iter::once(json!({"text": step.say})).chain(calls).collect()
}

/// How many turns with calls the conversation has had.
fn turn(request: &Value) -> usize {
    let called = |content: &&Value| {
        content["parts"].as_array().is_some_and(|parts| parts.iter().any(|part| part.get("functionCall").is_some()))
    };
    request["contents"].as_array().into_iter().flatten().filter(called).count()
}

async fn stream(events: &Events, script: &Script, model: &str, parts: &[Value]) -> Option<()> {
    if let Script::Slow { lines, every } = script {
        for line in 1..=*lines {
            events.send(None, &chunk(model, &[json!({"text": format!("line {line}\n")})], false)).await?;
            tokio::time::sleep(*every).await;
        }
    }
    let (first, rest) = parts.split_first()?;
    let whole = rest.is_empty() && *script != Script::Drop;
    events.send(None, &chunk(model, std::slice::from_ref(first), whole)).await?;
    if *script == Script::Drop {
        return None;
    }
    if rest.is_empty() { Some(()) } else { events.send(None, &chunk(model, rest, true)).await }
}

fn chunk(model: &str, parts: &[Value], last: bool) -> Value {
    let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
    if last {
        candidate["finishReason"] = json!("STOP");
    }
    let usage = json!({"promptTokenCount": TOKENS_IN, "candidatesTokenCount": TOKENS_OUT, "totalTokenCount": TOKENS_IN + TOKENS_OUT,
                       "cachedContentTokenCount": TOKENS_CACHED, "thoughtsTokenCount": 7});
    json!({"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "test"})
}

/// The routing and next-speaker questions of the CLI: any answer of the right shape lets it go on.
fn shaped(schema: &Value) -> Value {
    let answer = |(name, property): (&String, &Value)| {
        let kind = property["type"].as_str().unwrap_or_default().to_ascii_lowercase();
        let value = match (name.as_str(), kind.as_str()) {
            ("model_choice", _) => json!("flash"),
            ("next_speaker", _) => json!("user"),
            (_, "integer" | "number") => json!(1),
            (_, "boolean") => json!(false),
            _ => json!("test"),
        };
        (name.clone(), value)
    };
    schema["properties"].as_object().map(|properties| properties.iter().map(answer).collect()).unwrap_or_default()
}

fn error(status: u16, retry_after: u32) -> Value {
    let (code, message, details) = match status {
        400 => {
            let info = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]);
            ("INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", info)
        }
        401 => ("UNAUTHENTICATED", "API key not valid.", json!([])),
        403 => ("PERMISSION_DENIED", "Request not allowed", json!([])),
        404 => ("NOT_FOUND", "model: test-model", json!([])),
        429 => {
            let info = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": format!("{retry_after}s")}]);
            ("RESOURCE_EXHAUSTED", "This request would exceed your rate limit.", info)
        }
        503 => ("UNAVAILABLE", "The model is overloaded.", json!([])),
        _ => ("INTERNAL", "Internal server error", json!([])),
    };
    json!({"error": {"code": status, "message": message, "status": code, "details": details}})
}
