//! A small job runner: the protocol spoken by hand to the real binary over real pipes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ckrv_shim::archive::ArchiveWriter;
use ckrv_shim::mux::{self, Incoming, MuxStream, Opener, Side};
use ckrv_shim::path::BytePath;
use ckrv_shim::protocol::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Generous: a busy machine is several times slower.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub shim: Child,
    pub opener: Opener,
    pub incoming: Incoming,
    pub control: MuxStream,
}

pub struct RunResult {
    pub record: ExitRecord,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Bench {
    pub async fn start(silence_seconds: u64) -> Self {
        let mut shim = Command::new(env!("CARGO_BIN_EXE_ckrv-shim"))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the shim starts");
        let (read, write) = (shim.stdout.take().expect("stdout"), shim.stdin.take().expect("stdin"));
        let (opener, incoming, _driver) = mux::start(read, write, Side::Runner);
        let mut control = opener.open().await.expect("a control stream");
        write_frame(&mut control, &StreamHeader::Control).await.expect("header");
        write_frame(&mut control, &ToShim::Hello { protocol: PROTOCOL, silence_seconds }).await.expect("hello");
        let mut bench = Self { folder: tempfile::tempdir().expect("a folder"), shim, opener, incoming, control };
        assert!(matches!(bench.answer().await, FromShim::Hello { protocol: PROTOCOL, .. }));
        bench
    }

    /// A shim with a prepared workspace of these files.
    pub async fn prepared(files: &[(&str, &str)]) -> Self {
        let mut tar = ArchiveWriter::new(Vec::new());
        for (path, content) in files {
            tar.file(path.as_bytes(), 0o644, content.len() as u64, content.as_bytes()).expect("an entry");
        }
        let mut bench = Self::start(60).await;
        let answer = bench.prepare(&tar.finish().expect("a tar")).await;
        assert!(matches!(answer, FromShim::Prepared { .. }), "{answer:?}");
        bench
    }

    pub fn paths(&self) -> ShimPaths {
        let at = |name: &str| self.folder.path().join(name).to_str().expect("utf-8").to_owned();
        ShimPaths { workspace: at("workspace"), home: at("home"), context: at("context"), tmp: at("tmp") }
    }

    pub fn workspace(&self) -> PathBuf {
        Path::new(&self.paths().workspace).to_owned()
    }

    pub async fn prepare(&mut self, tar: &[u8]) -> FromShim {
        let prepare = Prepare { paths: self.paths(), max_entries: 100_000, max_bytes: 1 << 30 };
        self.say(&ToShim::Prepare(prepare)).await;
        let mut stream = self.opener.open().await.expect("a stream");
        write_frame(&mut stream, &StreamHeader::Checkout).await.expect("header");
        // A shim that refuses the tar doesn't read it to its end.
        let _ = stream.write_all(tar).await;
        let _ = stream.shutdown().await;
        self.answer().await
    }

    pub async fn say(&mut self, frame: &ToShim) {
        write_frame(&mut self.control, frame).await.expect("the control stream");
    }

    pub async fn answer(&mut self) -> FromShim {
        timeout(PATIENCE, read_frame(&mut self.control, MAX_FRAME)).await.expect("an answer in time").expect("an answer")
    }

    /// Begins a run and gives its output stream.
    pub async fn begin(&mut self, run: Run) -> MuxStream {
        let id = run.id;
        self.say(&ToShim::Run(Box::new(run))).await;
        let mut stream = timeout(PATIENCE, self.incoming.recv()).await.expect("in time").expect("an output stream");
        let header: StreamHeader = read_frame(&mut stream, 1024).await.expect("header");
        assert_eq!(header, StreamHeader::Output { run: id });
        stream
    }

    pub async fn run(&mut self, run: Run) -> RunResult {
        let stream = self.begin(run).await;
        self.finish(stream).await
    }

    /// Reads a run to its end, checking that no frame is missing.
    pub async fn finish(&mut self, mut stream: MuxStream) -> RunResult {
        let (mut stdout, mut stderr, mut seq) = (Vec::new(), Vec::new(), 0);
        while let Some(frame) = timeout(PATIENCE, read_output(&mut stream)).await.expect("output in time").expect("output") {
            seq += 1;
            assert_eq!(frame.seq, seq);
            match frame.source {
                Source::Stdout => stdout.extend(frame.bytes),
                Source::Stderr => stderr.extend(frame.bytes),
            }
        }
        loop {
            match self.answer().await {
                FromShim::Started { .. } | FromShim::Pong => {}
                FromShim::Exited { record, .. } => {
                    assert_eq!(record.output_frames, seq);
                    return RunResult { record, stdout, stderr };
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// What changed, and the tar of it.
    pub async fn collect(&mut self, skip: impl Fn(&Changed) -> bool) -> (ChangeList, Vec<u8>, Collected) {
        self.say(&ToShim::Collect(CollectLimits { max_entries: 10_000, max_bytes: 1 << 30 })).await;
        let mut stream = timeout(PATIENCE, self.incoming.recv()).await.expect("in time").expect("a stream");
        assert_eq!(read_frame::<_, StreamHeader>(&mut stream, 1024).await.expect("header"), StreamHeader::Changes);
        let list: ChangeList = read_frame(&mut stream, MAX_LIST).await.expect("a list");
        let skip = (0..).zip(&list.changed).filter(|(_, changed)| skip(changed)).map(|(index, _)| index).collect();
        write_frame(&mut stream, &Selection { skip }).await.expect("selection");
        let mut tar = Vec::new();
        stream.read_to_end(&mut tar).await.expect("a tar");
        match self.answer().await {
            FromShim::Collected(collected) => (list, tar, collected),
            other => panic!("{other:?}"),
        }
    }

    pub async fn ends(&mut self) -> std::process::ExitStatus {
        timeout(PATIENCE, self.shim.wait()).await.expect("the shim ends in time").expect("its status")
    }
}

pub fn sh(id: u32, script: &str) -> Run {
    Run {
        id,
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        env: BTreeMap::new(),
        cwd: BytePath::default(),
        files: Vec::new(),
        stdin: None,
        stop_signal: StopSignal::Term,
        grace_seconds: 1,
        deadline_seconds: 120,
        routes: Vec::new(),
        proxy: false,
    }
}

/// Whether a process is there, and not as a zombie that somebody else has to reap.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Awaits that a process is gone.
pub async fn gone(pid: u32) {
    timeout(PATIENCE, async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the process is gone in time");
}

/// Awaits a file that a command writes, and gives the number in it.
pub async fn number_in(path: &Path) -> u32 {
    timeout(PATIENCE, async {
        loop {
            let number =
                std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n')).and_then(|t| t.trim().parse().ok());
            if let Some(number) = number {
                return number;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the file is written in time")
}
