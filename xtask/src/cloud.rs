//! The AWS part of the bench: stand-ins for DynamoDB, S3, KMS, CloudFormation and Lambda on loopback ports, and the programs that
//! check what we give to AWS.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use self::install::Programs;
use self::server::{Server, free_ports, random_hex};
use crate::packages;
use crate::workspace::{self, Cache};

pub mod guard;
mod install;
mod server;

pub use self::install::once;

/// SeaweedFS is many servers in one, each with a port for HTTP and one for gRPC.
const WEED_PORTS: [&str; 8] = [
    "-s3.port",
    "-s3.port.grpc",
    "-master.port",
    "-master.port.grpc",
    "-volume.port",
    "-volume.port.grpc",
    "-filer.port",
    "-filer.port.grpc",
];

/// The running servers; dropped, they stop.
#[derive(Debug)]
pub struct Cloud {
    programs: Programs,
    dynamodb: Server,
    s3: Server,
    s3_key: String,
    s3_secret: String,
    aws: Server,
    ministack: Server,
}

/// Brings the programs into the cache, side by side.
pub fn install(cache: &Cache) -> Result<Programs> {
    install::programs(cache)
}

impl Cloud {
    /// All at once; then each is waited for.
    pub fn start(programs: Programs) -> Result<Self> {
        let (s3_key, s3_secret) = (random_hex(10)?, random_hex(20)?);
        let mut cloud = Self {
            dynamodb: dynamodb(&programs.dynamodb)?,
            s3: seaweed(&programs.weed, &s3_key, &s3_secret)?,
            aws: moto(&programs.moto)?,
            ministack: ministack(&programs.ministack)?,
            programs,
            s3_key,
            s3_secret,
        };
        for server in [&mut cloud.dynamodb, &mut cloud.s3, &mut cloud.aws, &mut cloud.ministack] {
            server.wait()?;
        }
        Ok(cloud)
    }

    pub fn export(&self, command: &mut Command) {
        command.env("CKRV_TEST_DYNAMODB", &self.dynamodb.url).env("CKRV_TEST_S3", &self.s3.url);
        command.env("CKRV_TEST_S3_KEY", &self.s3_key).env("CKRV_TEST_S3_SECRET", &self.s3_secret);
        // For stores that a test opens in its own process: the SDK finds its credentials here, and S3 alone checks them.
        command.env("AWS_ACCESS_KEY_ID", &self.s3_key).env("AWS_SECRET_ACCESS_KEY", &self.s3_secret);
        command.env("CKRV_TEST_AWS", &self.aws.url).env("CKRV_TEST_MINISTACK", &self.ministack.url);
        command.env("CKRV_TEST_AWSCLI", &self.programs.awscli).env("CKRV_TEST_CFN_LINT", &self.programs.cfn_lint);
        command.env("CKRV_TEST_CFN_GUARD", &self.programs.cfn_guard);
        command.env("CKRV_TEST_SCHEMATHESIS", &self.programs.schemathesis).env("CKRV_TEST_OIDC", &self.programs.oidc);
        for (name, program) in [("CKRV_TEST_CHROMIUM", "chromium"), ("CKRV_TEST_CHROMEDRIVER", "chromedriver")] {
            // Without it the test that wants it says so.
            if let Some(path) = packages::which(program) {
                command.env(name, path);
            }
        }
    }
}

/// Shared: whatever key and region a client names, it sees the same tables.
fn dynamodb(folder: &Path) -> Result<Server> {
    let [port] = free_ports()?;
    let mut server = Server::new("DynamoDB Local", "java", port, &["/"])?;
    let lib = folder.join("lib");
    server.command.arg(format!("-Dsqlite4java.library.path={}", lib.display())).arg("-Xmx1g").arg("-cp").arg(lib.join("*"));
    server.command.arg("com.amazonaws.services.dynamodbv2.local.main.ServerRunner");
    server.command.args(["-inMemory", "-sharedDb", "-disableTelemetry", "-port", &port.to_string()]);
    server.start()
}

fn seaweed(weed: &Path, key: &str, secret: &str) -> Result<Server> {
    let ports: [u16; 8] = free_ports()?;
    let [s3, _, master, ..] = ports;
    // The gateway answers before there is a place to write to: the second address gives one out.
    let mut server = Server::new("SeaweedFS", weed, s3, &["/healthz", &format!(":{master}/dir/assign")])?;
    let (config, data) = (server.scratch().join("s3.json"), server.scratch().join("data"));
    std::fs::create_dir(&data)?;
    let identity = serde_json::json!({
        "name": "tests",
        "credentials": [{ "accessKey": key, "secretKey": secret }],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    });
    std::fs::write(&config, serde_json::json!({ "identities": [identity] }).to_string())?;
    // Each bucket takes volumes of its own, seven by default: one is enough, and there are many buckets.
    server.command.env("WEED_MASTER_VOLUME_GROWTH_COPY_1", "1");
    server.command.args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=10000"]);
    server.command.args(["-master.volumeSizeLimitMB=64", "-s3", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    server.command.arg(format!("-dir={}", data.display())).arg(format!("-s3.config={}", config.display()));
    for (option, port) in WEED_PORTS.iter().zip(ports) {
        server.command.arg(format!("{option}={port}"));
    }
    server.start()
}

fn moto(program: &Path) -> Result<Server> {
    let [port] = free_ports()?;
    let mut server = Server::new("moto", program, port, &["/moto-api/"])?;
    server.command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    server.start()
}

fn ministack(program: &Path) -> Result<Server> {
    let [port] = free_ports()?;
    let mut server = Server::new("ministack", program, port, &["/health"])?;
    server.command.env("GATEWAY_PORT", port.to_string()).env("AUTH", "true").env("IOT_MTLS_ENABLED", "0");
    server.command.env("BIND_HOST", "127.0.0.1").env("MINISTACK_HOST", "localhost");
    // What it leaves out of IAM: see the file there.
    server.command.env("PYTHONPATH", workspace::root().join("tests/ministack")).env("PYTHONDONTWRITEBYTECODE", "1");
    server.start()
}
