//! Jobs in a cluster, each figure beside the same without us. Prints a line for each as `NAME|OURS|BESIDE|RATIO`. Needs the bench's servers
//! and its cluster (`cargo xtask bench --only cluster` starts them). `starts` and `follow`: on the one real node. `scale`: on nodes that kwok answers for.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark for people")]

mod dispatcher;
mod follow;
mod runners;
mod scale;
mod starts;

use anyhow::{Result, bail};

/// Prints a line of the table.
fn row(name: &str, figure: &str, beside: &str, ratio: Option<f64>) {
    let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    println!("{name}|{figure}|{beside}|{ratio}");
}

/// What was taken, in order: nearest rank.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[tokio::main]
async fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match std::env::args().nth(1).as_deref() {
        Some("starts") => starts::run().await,
        Some("follow") => follow::run().await,
        Some("scale") => scale::run().await,
        _ => bail!("which part? `starts`, `follow` or `scale`"),
    }
}
