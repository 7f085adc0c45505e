//! Prints the OpenAPI document: `cargo run -p ckrv-api --example openapi > api-lambda/openapi.json`.
#![expect(clippy::print_stdout, reason = "the document is this program's output")]

fn main() -> Result<(), serde_json::Error> {
    println!("{}", serde_json::to_string_pretty(&ckrv_api::openapi())?);
    Ok(())
}
