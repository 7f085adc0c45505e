//! `cargo xtask …`: the only build scripts of this repository. Each command is a file.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod agent_image;
mod bench;
mod checks;
mod cloud;
mod cluster;
mod demo;
mod machine;
mod measure;
mod package;
mod packages;
mod podman;
mod setup;
mod soak;
mod steps;
mod test;
mod wasm;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests, measures and shows ckrv")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check format, lints, dependencies and generated files, set the bench up, run every test
    Test(test::Args),
    /// Run the main job on the embedded default, as a user would type it
    Demo,
    /// Measure, and write docs/benchmarks.md
    Bench(bench::Args),
    /// Build the adapters' prebuilt files, or check that they are what the sources give
    Wasm {
        #[command(subcommand)]
        command: WasmCommand,
    },
    /// Build the API's function for Lambda, as zips in target/package
    Package(package::Args),
    /// Only bring the parts that the tests need onto this machine
    Setup,
    /// Run the Kubernetes cluster of the tests until Ctrl-C, to look at it
    Cluster(cluster::Args),
    /// Kill and restart the server again and again, from a seed
    Soak(soak::Args),
    /// Run a server of the bench until the stdin given to it ends
    #[command(hide = true)]
    Guard(cloud::guard::Args),
    /// Make a cluster's namespaces, and clear away what it has left when stdin ends
    #[command(hide = true)]
    ClusterGuard(cluster::guard::Args),
    /// Start a cluster's parts, as process 1 of its namespaces
    #[command(hide = true)]
    ClusterInit(cluster::guard::Args),
}

#[derive(Subcommand)]
enum WasmCommand {
    Build,
    Check,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => test::run(&args),
        Command::Demo => demo::run(),
        Command::Bench(args) => bench::run(&args),
        Command::Wasm { command: WasmCommand::Build } => wasm::build(&workspace::root()),
        Command::Wasm { command: WasmCommand::Check } => wasm::check(&workspace::root()),
        Command::Package(args) => package::run(&args),
        Command::Setup => setup::run(),
        Command::Soak(args) => soak::run(&args),
        Command::Guard(args) => cloud::guard::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::ClusterGuard(args) => cluster::guard::guard(&args),
        Command::ClusterInit(args) => cluster::guard::init(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            steps::say(&format!("\nxtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
