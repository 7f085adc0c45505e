//! The Anthropic Messages API, as Claude Code 2.1 uses it.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::DONE;
use super::conversation::{tool, workspace};
use super::reply::{self, Events, TOKENS_CACHED, TOKENS_IN, TOKENS_OUT};
use super::script::Script;

pub async fn answer(script: &Script, request: &Value) -> Response {
    match script {
        Script::Hang => return reply::hang().await,
        Script::Error { status, retry_after } => return reply::error(*status, *retry_after, &error(*status)),
        _ => {}
    }
    let blocks = blocks(script, request);
    let stop = if blocks.iter().any(|block| block["type"] == "tool_use") { "tool_use" } else { "end_turn" };
    let model = request["model"].as_str().unwrap_or("test-model").to_owned();
    if request["stream"] != true {
        let usage = usage(TOKENS_OUT);
        return reply::json(StatusCode::OK, &message(&model, &json!(blocks), &json!(stop), &usage));
    }
    let script = script.clone();
    reply::events(async move |events| stream(&events, &script, &model, &blocks, stop).await)
}

/// Words and calls of this turn. Requests without tools (titles and the like) get words only.
fn blocks(script: &Script, request: &Value) -> Vec<Value> {
    let offered: Vec<&str> = request["tools"].as_array().into_iter().flatten().filter_map(|tool| tool["name"].as_str()).collect();
    let Some(step) = script.step(turn(request)).filter(|_| !offered.is_empty()) else {
        return vec![json!({"type": "text", "text": DONE})];
    };
    let workspace = workspace(&request["system"]).or_else(|| workspace(&request["messages"]));
    let calls = step.calls.iter().filter_map(|call| tool(call, &offered, workspace.as_deref()));
    let id = || format!("toolu_{:020x}", rand::random::<u64>());
    let calls = calls.map(|(name, input)| json!({"type": "tool_use", "id": id(), "name": name, "input": input}));
    std::iter::once(json!({"type": "text", "text": step.say})).chain(calls).collect()
}

/// How many turns with calls the conversation has had.
fn turn(request: &Value) -> usize {
    let called = |message: &&Value| {
        message["content"].as_array().is_some_and(|blocks| blocks.iter().any(|block| block["type"] == "tool_use"))
    };
    request["messages"].as_array().into_iter().flatten().filter(called).count()
}

async fn stream(events: &Events, script: &Script, model: &str, blocks: &[Value], stop: &str) -> Option<()> {
    let send = async |event: Value| events.send(event["type"].as_str(), &event).await;
    send(json!({"type": "message_start", "message": message(model, &json!([]), &Value::Null, &usage(1))})).await?;
    for (index, block) in blocks.iter().enumerate() {
        let text = block["type"] == "text";
        let mut empty = block.clone();
        empty[if text { "text" } else { "input" }] = if text { json!("") } else { json!({}) };
        send(json!({"type": "content_block_start", "index": index, "content_block": empty})).await?;
        if let (true, Script::Slow { lines, every }) = (text, script) {
            slowly(events, index, *lines, *every).await?;
        }
        let delta = if text {
            json!({"type": "text_delta", "text": block["text"]})
        } else {
            json!({"type": "input_json_delta", "partial_json": block["input"].to_string()})
        };
        send(json!({"type": "content_block_delta", "index": index, "delta": delta})).await?;
        if *script == Script::Drop {
            return None;
        }
        send(json!({"type": "content_block_stop", "index": index})).await?;
    }
    let delta = json!({"stop_reason": stop, "stop_sequence": null});
    send(json!({"type": "message_delta", "delta": delta, "usage": usage(TOKENS_OUT)})).await?;
    send(json!({"type": "message_stop"})).await
}

async fn slowly(events: &Events, index: usize, lines: u32, every: Duration) -> Option<()> {
    for line in 1..=lines {
        let delta = json!({"type": "text_delta", "text": format!("line {line}\n")});
        events.send(Some("content_block_delta"), &json!({"type": "content_block_delta", "index": index, "delta": delta})).await?;
        tokio::time::sleep(every).await;
    }
    Some(())
}

fn message(model: &str, content: &Value, stop: &Value, usage: &Value) -> Value {
    let id = format!("msg_{:020x}", rand::random::<u64>());
    json!({"id": id, "type": "message", "role": "assistant", "model": model, "content": content, "stop_reason": stop,
           "stop_sequence": null, "usage": usage})
}

fn usage(output: u32) -> Value {
    json!({"input_tokens": TOKENS_IN, "cache_creation_input_tokens": 0, "cache_read_input_tokens": TOKENS_CACHED,
           "output_tokens": output, "service_tier": "standard"})
}

fn error(status: u16) -> Value {
    let (kind, message) = match status {
        400 => ("invalid_request_error", "Your credit balance is too low to access the API."),
        401 => ("authentication_error", "invalid x-api-key"),
        403 => ("permission_error", "Request not allowed"),
        404 => ("not_found_error", "model: test-model"),
        429 => ("rate_limit_error", "This request would exceed your rate limit."),
        529 => ("overloaded_error", "Overloaded"),
        _ => ("api_error", "Internal server error"),
    };
    json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_test"})
}
