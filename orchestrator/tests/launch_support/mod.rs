//! The shim's binary for launcher tests, and a session that is ready to run something.

#![expect(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use ckrv_core::plan::Resources;
use ckrv_orchestrator::launch::proxy::ProxyClient;
use ckrv_orchestrator::launch::*;
use tokio::sync::mpsc;

/// Generous: a busy machine is several times slower.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const LIMITS: CollectLimits = CollectLimits { max_entries: 1000, max_bytes: 1 << 26 };

/// The shim for the process launcher, built by cargo where it isn't yet: another package's binary isn't given to a test.
pub fn shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build(&[], &[]))
}

/// The static one, for containers.
pub fn static_shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static-shim");
        let folder = folder.to_str().expect("utf-8");
        // Unoptimised, unlike the workspace's tests: what is saved in building is more than what is lost in running.
        let args = ["--target", &target, "--target-dir", folder, "--config", "profile.dev.package.\"*\".opt-level=0"];
        build(&args, &[("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")])
    })
}

fn build(args: &[&str], env: &[(&str, &str)]) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--locked",
            "--package",
            "ckrv-shim",
            "--bin",
            "ckrv-shim",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(args)
        .envs(env.iter().copied())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "building the shim failed");
    let lines =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    let found = lines.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    found.expect("cargo names the executable")
}

pub fn spec(name: &str, image: &str, run_dir: &Path) -> LaunchSpec {
    LaunchSpec {
        name: name.to_owned(),
        image: image.to_owned(),
        labels: BTreeMap::from([("dev.ckrv.test".to_owned(), name.to_owned())]),
        resources: Resources::default(),
        run_dir: run_dir.to_owned(),
    }
}

pub async fn connect(launched: Launched) -> (ShimSession, ckrv_shim::protocol::ShimPaths, std::sync::Arc<dyn Instance>) {
    let Launched { read, write, paths, instance } = launched;
    let proxy = ProxyClient::new().expect("an HTTP client");
    let session = ShimSession::connect(read, write, SessionConfig::default(), proxy).await;
    match session {
        Ok(session) => (session, paths, instance),
        Err(error) => panic!("{error}; {:?}", instance.stop().await),
    }
}

/// A tar with one file, `a.txt`, of `A`.
pub fn small_tar() -> Vec<u8> {
    let mut tar = ArchiveWriter::new(Vec::new());
    tar.file(b"a.txt", 0o644, 2, &b"A\n"[..]).expect("an entry");
    tar.finish().expect("a tar")
}

pub fn sh(script: &str) -> RunSpec {
    RunSpec::plain(["sh", "-c", script].map(str::to_owned).to_vec(), 120)
}

/// Runs to the end and gives stdout and stderr.
pub async fn run(session: &mut ShimSession, spec: RunSpec) -> (RunEnd, Vec<u8>, Vec<u8>) {
    let (output, mut frames) = mpsc::channel::<OutputFrame>(4);
    let reading = async {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(frame) = frames.recv().await {
            let to = if frame.source == Source::Stdout { &mut stdout } else { &mut stderr };
            to.extend(frame.bytes);
        }
        (stdout, stderr)
    };
    let running = async {
        let end = session.run(spec, &output).await;
        drop(output);
        end
    };
    let (end, (stdout, stderr)) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(running, reading) }).await.expect("in time");
    (end.expect("the run ends"), stdout, stderr)
}
