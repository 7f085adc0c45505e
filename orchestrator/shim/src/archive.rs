//! Tar entries written byte for byte: the tar crate's own helpers go through `Path` and would tidy a symlink's target.

use std::io::{self, Read, Write};

use tar::{Builder, EntryType, Header};

/// Longest name that fits in a plain header.
const NAME: usize = 100;

/// Writes a tar with GNU long names. Owner, group and times are left zero, so equal trees give equal bytes.
pub struct ArchiveWriter<W: Write> {
    tar: Builder<W>,
}

impl<W: Write> std::fmt::Debug for ArchiveWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArchiveWriter").finish_non_exhaustive()
    }
}

impl<W: Write> ArchiveWriter<W> {
    pub fn new(out: W) -> Self {
        Self { tar: Builder::new(out) }
    }

    /// A folder, `mode` its permission bits.
    pub fn folder(&mut self, path: &[u8], mode: u32) -> io::Result<()> {
        let mut name = path.to_vec();
        name.push(b'/');
        let mut header = self.begin(&name, b"", EntryType::Directory, mode)?;
        header.set_size(0);
        header.set_cksum();
        self.tar.append(&header, io::empty())
    }

    /// A file of exactly `size` bytes; `content` must give as many.
    pub fn file(&mut self, path: &[u8], mode: u32, size: u64, content: impl Read) -> io::Result<()> {
        let mut header = self.begin(path, b"", EntryType::Regular, mode)?;
        header.set_size(size);
        header.set_cksum();
        self.tar.append(&header, content.take(size))
    }

    /// A symbolic link, its target untouched.
    pub fn symlink(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let mut header = self.begin(path, target, EntryType::Symlink, 0o777)?;
        header.set_size(0);
        header.set_cksum();
        self.tar.append(&header, io::empty())
    }

    /// Writes the end of the archive and gives the sink back.
    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }

    fn begin(&mut self, path: &[u8], target: &[u8], kind: EntryType, mode: u32) -> io::Result<Header> {
        if target.len() > NAME {
            self.long(EntryType::GNULongLink, target)?;
        }
        if path.len() > NAME {
            self.long(EntryType::GNULongName, path)?;
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode & 0o7777);
        put(&mut header.as_old_mut().name, path);
        put(&mut header.as_old_mut().linkname, target);
        Ok(header)
    }

    fn long(&mut self, kind: EntryType, name: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        put(&mut header.as_old_mut().name, b"././@LongLink");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        self.tar.append(&header, name.chain(&[0_u8][..]))
    }
}

/// As much of `text` as fits; a reader takes the rest from the long name before it.
fn put(field: &mut [u8; NAME], text: &[u8]) {
    let n = text.len().min(NAME);
    field[..n].copy_from_slice(&text[..n]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_targets_come_back_byte_for_byte() {
        let long = [b'x'; 300];
        let cases: [(&[u8], &[u8]); 4] =
            [(b"a", b"./b//c/"), (b"-n\n\xff", b"../\xfe"), (&long, &long), (&[b'y'; 100], &[b'z'; 101])];
        let mut writer = ArchiveWriter::new(Vec::new());
        for (path, target) in cases {
            writer.symlink(path, target).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let read: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.path_bytes().into_owned(), e.link_name_bytes().unwrap().into_owned()))
            .collect();
        assert_eq!(read, cases.map(|(p, t)| (p.to_vec(), t.to_vec())));
    }
}
