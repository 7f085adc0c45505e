//! Images for the node's containerd, from no registry: OCI layouts of a few layers, written straight into its import.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use crate::agent_image::{self, Recipe};
use crate::packages::{Agents, which};
use crate::steps;
use crate::workspace::Cache;

pub const PAUSE_IMAGE: &str = "localhost/ckrv-test-pause:1";
/// Our own: `ckrv` under test, with what it needs around it.
pub const CKRV_IMAGE: &str = "localhost/ckrv-test-ckrv:1";

/// The images of a node.
#[derive(Clone, Debug)]
pub struct Images {
    socket: PathBuf,
    cache: Cache,
}

/// A tar that is one layer.
struct Layer {
    path: PathBuf,
    digest: String,
    size: u64,
}

impl Images {
    pub fn new(socket: PathBuf, cache: &Cache) -> Self {
        Self { socket, cache: cache.clone() }
    }

    /// All but our own.
    pub fn import_all(&self, agents: &Agents) -> Result<()> {
        self.import_pause()?;
        self.import(&agent_image::tiny()?)?;
        self.import(&agent_image::scratch()?)?;
        self.import(&agent_image::agents(agents)?)
    }

    /// As `podman import` makes it.
    fn import(&self, recipe: &Recipe) -> Result<()> {
        let mut names = vec![recipe.image.to_owned()];
        names.extend(recipe.names.iter().cloned());
        self.load(&names, &[self.layer(recipe)?], &json!({}))
    }

    /// What a sandbox holds its namespaces by.
    fn import_pause(&self) -> Result<()> {
        let sleep = json!({ "Entrypoint": ["/bin/busybox", "sleep", "2147483647"] });
        self.load(&[PAUSE_IMAGE.to_owned()], &[self.layer(&agent_image::tiny()?)?], &sleep)
    }

    /// The program changes with every build, and what lies below it hardly ever: that layer is handed over once.
    pub fn import_ckrv(&self, ckrv: &Path, name: &str) -> Result<()> {
        let base = agent_image::base()?;
        let below = self.layer(&base)?;
        if !self.held()?.contains(&below.digest) {
            self.import(&base)?;
        }
        let scratch = tempfile::tempdir()?;
        let stripped = scratch.path().join("ckrv");
        let mut strip = Command::new("strip");
        steps::output(strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(ckrv))?;
        let path = scratch.path().join("layer.tar");
        agent_image::layer(&stripped, "usr/local/bin/ckrv", &path)?;
        let layer = Layer::new(path)?;
        let config = json!({ "Entrypoint": ["/usr/local/bin/ckrv"], "User": "1000:1000", "WorkingDir": "/home/agent" });
        self.load(&[name.to_owned()], &[below, layer], &config)
    }

    fn layer(&self, recipe: &Recipe) -> Result<Layer> {
        let path = recipe.tar(&self.cache)?;
        let known = path.with_extension("sha256");
        if let Ok(digest) = std::fs::read_to_string(&known) {
            let size = std::fs::metadata(&path)?.size();
            return Ok(Layer { path, digest, size });
        }
        let layer = Layer::new(path)?;
        std::fs::write(known, &layer.digest)?;
        Ok(layer)
    }

    /// The digests of what containerd holds.
    fn held(&self) -> Result<HashSet<String>> {
        let listed = steps::text(self.ctr()?.args(["content", "ls", "--quiet"]))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    fn ctr(&self) -> Result<Command> {
        let mut command = Command::new(which("ctr").context("ctr is missing: it comes with containerd")?);
        command.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]);
        Ok(command)
    }

    fn load(&self, names: &[String], layers: &[Layer], config: &Value) -> Result<()> {
        let held = self.held()?;
        let mut ctr = self.ctr()?;
        ctr.args(["images", "import", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = ctr.spawn().context("can't start ctr")?;
        let stdin = child.stdin.take().context("ctr has no stdin")?;
        let written = write(stdin, &held, names, layers, config);
        let status = child.wait()?;
        if !status.success() {
            bail!("`ctr images import` of {} ended with {status}", names.join(", "));
        }
        written.with_context(|| format!("can't hand over the image {}", names.join(", ")))
    }
}

/// An OCI layout, without the layers that are held already.
fn write(to: impl std::io::Write, held: &HashSet<String>, names: &[String], layers: &[Layer], config: &Value) -> Result<()> {
    let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, to));
    let mut described = Vec::new();
    for layer in layers {
        if !held.contains(&layer.digest) {
            tar.append_data(&mut header(layer.size), blob(&layer.digest), File::open(&layer.path)?)?;
        }
        let kind = "application/vnd.oci.image.layer.v1.tar";
        described.push(json!({ "mediaType": kind, "digest": layer.digest, "size": layer.size }));
    }
    let mut config = config.clone();
    config["Env"] = json!(["PATH=/usr/local/bin:/usr/bin:/bin"]);
    let digests: Vec<_> = layers.iter().map(|layer| &layer.digest).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let config = document(&mut tar, &config, "application/vnd.oci.image.config.v1+json")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": described });
    let manifest = document(&mut tar, &manifest, kind)?;
    let named = names.iter().map(|name| {
        let mut one = manifest.clone();
        one["annotations"] = json!({ "io.containerd.image.name": name });
        one
    });
    let index = json!({ "schemaVersion": 2, "manifests": named.collect::<Vec<_>>() }).to_string();
    tar.append_data(&mut header(index.len() as u64), "index.json", index.as_bytes())?;
    let version = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
    tar.append_data(&mut header(version.len() as u64), "oci-layout", version.as_bytes())?;
    tar.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    Ok(())
}

impl Layer {
    fn new(path: PathBuf) -> Result<Self> {
        let (mut file, mut hash, mut buffer) = (File::open(&path)?, Sha256::new(), vec![0; 1 << 20]);
        let mut size = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            size += read as u64;
        }
        Ok(Self { digest: digest(hash), path, size })
    }
}

fn document(tar: &mut Builder<impl std::io::Write>, value: &Value, kind: &str) -> Result<Value> {
    let text = value.to_string();
    let digest = digest(Sha256::new_with_prefix(&text));
    tar.append_data(&mut header(text.len() as u64), blob(&digest), text.as_bytes())?;
    Ok(json!({ "mediaType": kind, "digest": digest, "size": text.len() }))
}

fn blob(digest: &str) -> PathBuf {
    Path::new("blobs").join(digest.replace(':', "/"))
}

fn digest(hash: Sha256) -> String {
    format!("sha256:{}", hex::encode(hash.finalize()))
}

fn header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_written_without_the_layers_that_are_held() {
        let scratch = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::write(&path, name).unwrap();
            Layer::new(path).unwrap()
        };
        let (below, above) = (layer("below"), layer("above"));
        let held = HashSet::from([below.digest.clone()]);
        let mut written = Vec::new();
        write(&mut written, &held, &["one:1".into(), "two:1".into()], &[below, above], &json!({ "User": "1000" })).unwrap();
        let mut documents = Vec::new();
        let mut blobs = 0;
        for entry in tar::Archive::new(written.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mut bytes) = (entry.path().unwrap().into_owned(), Vec::new());
            entry.read_to_end(&mut bytes).unwrap();
            if path.starts_with("blobs") {
                assert_eq!(path, blob(&digest(Sha256::new_with_prefix(&bytes))));
                assert_ne!(bytes, b"below");
                blobs += 1;
            }
            documents.extend(serde_json::from_slice::<Value>(&bytes));
        }
        assert_eq!(blobs, 3, "a layer, the configuration, the manifest");
        let of = |key: &str| documents.iter().find(|document| !document[key].is_null()).unwrap();
        assert_eq!(of("layers")["layers"].as_array().unwrap().len(), 2);
        assert_eq!(of("rootfs")["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        let names =
            of("manifests")["manifests"].as_array().unwrap().iter().map(|one| &one["annotations"]["io.containerd.image.name"]);
        assert_eq!(names.collect::<Vec<_>>(), ["one:1", "two:1"]);
    }
}
