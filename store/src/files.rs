//! Blobs as files: a temporary file, fsync, a link that never replaces anything, fsync of the folder.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;

use crate::blobs::{Blobs, PutBlobError, check_key};
use crate::error::StoreError;

/// No put takes this long: an older temporary file is what a crash left.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The embedded `Blobs`. A key is a file's path under `blobs/`, so one key can't be the folder of another.
#[derive(Clone, Debug)]
pub struct FileBlobs {
    root: PathBuf,
    /// Beside the root and on the same file system; no key reaches it.
    temporary: PathBuf,
}

impl FileBlobs {
    /// Opens or creates `FOLDER/blobs`, mode 0700.
    ///
    /// # Errors
    /// [`StoreError::Backend`] where the folders can't be made.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let blobs = Self { root: folder.join("blobs"), temporary: folder.join("blobs.tmp") };
        for path in [&blobs.root, &blobs.temporary] {
            private_folder(path).map_err(|error| StoreError::backend(format!("making the folder {}", path.display()), error))?;
        }
        if let Err(error) = blobs.sweep() {
            tracing::warn!(error = crate::chain(&error), "temporary files of an earlier run could not be removed");
        }
        Ok(blobs)
    }

    fn sweep(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.temporary)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.modified()?.elapsed().is_ok_and(|age| age > STALE) {
                if metadata.is_dir() { std::fs::remove_dir_all(entry.path())? } else { std::fs::remove_file(entry.path())? }
            }
        }
        Ok(())
    }

    /// The key's file, if the key is one.
    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        check_key(key).map(|()| self.root.join(key))
    }

    fn put_file(&self, key: &str, content: &[u8]) -> Result<(), PutBlobError> {
        let path = self.path(key)?;
        let failed = |error| PutBlobError::Store(StoreError::backend(format!("storing the blob {key}"), error));
        let folder = path.parent().unwrap_or(&self.root);
        private_folder(folder).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.temporary).map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        match file.persist_noclobber(&path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
                // The whole content is compared, which says at least as much as its SHA-256.
                if std::fs::read(&path).map_err(failed)? != content {
                    return Err(PutBlobError::Conflict(key.to_owned()));
                }
            }
            Err(error) => return Err(failed(error.error)),
        }
        // In the case of equal content, too: the put that was faster may not have come to this point yet.
        sync_folders(folder, &self.root).map_err(failed)
    }

    fn get_file(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        match std::fs::read(self.path(key)?) {
            Ok(content) => Ok(Some(content.into())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) => {
                Ok(None)
            }
            Err(error) => Err(StoreError::backend(format!("reading the blob {key}"), error)),
        }
    }

    fn get_part(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let read = || -> std::io::Result<Bytes> {
            let mut file = File::open(self.path(key).map_err(std::io::Error::other)?)?;
            let mut content = Vec::new();
            file.seek(SeekFrom::Start(range.start))?;
            file.take(range.end.saturating_sub(range.start)).read_to_end(&mut content)?;
            Ok(content.into())
        };
        check_key(key)?;
        match read() {
            Ok(content) => Ok(Some(content)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) => {
                Ok(None)
            }
            Err(error) => Err(StoreError::backend(format!("reading the blob {key}"), error)),
        }
    }

    fn delete_file(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key)?;
        let failed = |error| StoreError::backend(format!("deleting the blob {key}"), error);
        match std::fs::remove_file(&path) {
            Ok(()) => sync_folders(path.parent().unwrap_or(&self.root), &self.root).map_err(failed),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
            // A folder is no blob.
            Err(_) if path.is_dir() => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn delete_folder(&self, prefix: &str) -> Result<(), StoreError> {
        let path = self.path(prefix)?;
        let failed = |error| StoreError::backend(format!("deleting the blobs under {prefix}/"), error);
        if !path.is_dir() {
            return Ok(());
        }
        // Moved away first: gone at once and as a whole, even if the deletion is cut short.
        let trash = tempfile::tempdir_in(&self.temporary).map_err(failed)?;
        match std::fs::rename(&path, trash.path().join("deleted")) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        sync_folders(path.parent().unwrap_or(&self.root), &self.root).map_err(failed)?;
        trash.close().map_err(failed)
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T, StoreError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(|error| StoreError::backend("working on blobs", error))
    }
}

#[async_trait]
impl Blobs for FileBlobs {
    async fn put(&self, key: &str, content: Bytes) -> Result<(), PutBlobError> {
        let key = key.to_owned();
        self.run(move |this| this.put_file(&key, &content)).await?
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let key = key.to_owned();
        self.run(move |this| this.get_file(&key)).await?
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let key = key.to_owned();
        self.run(move |this| this.get_part(&key, range)).await?
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let key = key.to_owned();
        self.run(move |this| this.delete_file(&key)).await?
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), StoreError> {
        let prefix = prefix.trim_end_matches('/').to_owned();
        self.run(move |this| this.delete_folder(&prefix)).await?
    }

    async fn presign(&self, _: &str, _: Duration) -> Result<Option<SecretString>, StoreError> {
        Ok(None)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.run(|this| std::fs::read_dir(&this.root).map(drop))
            .await?
            .map_err(|error| StoreError::backend("asking the blob store whether it answers", error))
    }
}

fn private_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the entries on the way from `root` to `folder` durable.
fn sync_folders(folder: &Path, root: &Path) -> std::io::Result<()> {
    for step in folder.ancestors() {
        match File::open(step).and_then(|opened| opened.sync_all()) {
            Ok(()) => {}
            // Deleted meanwhile, with what was in it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if step == root {
            break;
        }
    }
    Ok(())
}
