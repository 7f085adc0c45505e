//! The compacted log of an ended job: one object of zstd frames, each readable by itself, and in the job's item an index of them. Anybody can
//! read the object with `zstd -d`; we read only the frames that are asked for.
//!
//! The chunks stay until their TTL removes them, which costs nothing; deleting them would cost as much as writing them did.

use bytes::Bytes;
use ckrv_core::id::JobId;
use ckrv_core::log::{Cursor, LogEntry};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use super::edit::{Edit, Sent};
use super::jobs::AwsJobs;
use super::logs::lines;
use super::meta::{FULL_LOG, Frame, FullLog, meta_key};
use super::pack::pack;
use super::reading::read_chunks;
use super::table::{bytes, to_json};
use crate::blobs::PutBlobError;
use crate::error::StoreError;

const CONTEXT: &str = "compacting a log";
/// Of one frame, before compression: a page of a log is in one or two, and compression gains little beyond it.
const FRAME: usize = 256 * 1024;
/// Nothing bigger is ever made from a frame: one entry may be as big as the gateway lets in.
const MAX_FRAME: usize = 64 * 1024 * 1024;
/// Entries that are read at a time.
const BATCH: usize = 2000;
/// Written once, read for a week.
const LEVEL: i32 = 9;

fn blob_key(id: JobId) -> String {
    format!("jobs/{id}/log-full")
}

/// Collects frames.
struct Writer {
    compressor: Compressor<'static>,
    frames: Vec<Frame>,
    object: Vec<u8>,
    first: Option<Cursor>,
    lines: String,
}

impl Writer {
    fn new() -> Result<Self, StoreError> {
        let failed = |error| StoreError::backend(CONTEXT, error);
        let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
        // A part of an object is read without the object's own checksum.
        compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
        Ok(Self { compressor, frames: Vec::new(), object: Vec::new(), first: None, lines: String::new() })
    }

    fn add(&mut self, entry: &LogEntry) -> Result<(), StoreError> {
        self.first.get_or_insert(entry.cursor());
        self.lines.push_str(&lines(std::slice::from_ref(entry))?);
        if self.lines.len() >= FRAME { self.end_frame() } else { Ok(()) }
    }

    fn end_frame(&mut self) -> Result<(), StoreError> {
        let Some(first) = self.first.take() else { return Ok(()) };
        let frame = self.compressor.compress(self.lines.as_bytes()).map_err(|error| StoreError::backend(CONTEXT, error))?;
        self.frames.push(Frame { first, offset: self.object.len() as u64, length: frame.len() as u64 });
        self.object.extend_from_slice(&frame);
        self.lines.clear();
        Ok(())
    }
}

pub(super) async fn compact(store: &AwsJobs, id: JobId) -> Result<(), StoreError> {
    let Some(meta) = store.meta(id).await? else { return Ok(()) };
    if !meta.job.state.is_final() || meta.purged || meta.full_log.is_some() {
        return Ok(());
    }
    let (mut writer, mut after) = (Writer::new()?, Cursor::default());
    loop {
        let page = read_chunks(store, &meta, after, BATCH).await?;
        let Some(last) = page.last() else { break };
        after = last.cursor();
        page.iter().try_for_each(|entry| writer.add(entry))?;
    }
    writer.end_frame()?;
    let Writer { frames, object, .. } = writer;
    if frames.is_empty() {
        return Ok(());
    }
    match store.blobs.put(&blob_key(id), Bytes::from(object)).await {
        Ok(()) => {}
        Err(PutBlobError::Store(error)) => return Err(error),
        Err(error @ PutBlobError::Conflict(_)) => return Err(StoreError::backend(CONTEXT, error)),
    }
    let mut edit = Edit::default();
    edit.set(FULL_LOG, bytes(pack(to_json(&FullLog { frames })?.as_bytes())));
    let name = edit.name(FULL_LOG);
    edit.condition(format!("attribute_not_exists({name})"));
    match store.table.write(CONTEXT, vec![edit.write(&store.table, meta_key(id))?], "").await? {
        Sent::Done | Sent::Refused(_) => Ok(()),
        Sent::Unsure(error) => Err(error),
    }
}

/// Entries behind `after`. Nothing where the object is gone: then the job's results expired.
pub(super) async fn read(
    store: &AwsJobs,
    id: JobId,
    full: &FullLog,
    after: Cursor,
    limit: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    let key = blob_key(id);
    let behind = full.frames.partition_point(|frame| frame.first <= after);
    let mut entries: Vec<LogEntry> = Vec::new();
    for frame in &full.frames[behind.saturating_sub(1)..] {
        if entries.len() >= limit {
            break;
        }
        let Some(packed) = store.blobs.get_range(&key, frame.offset..frame.offset + frame.length).await? else { break };
        let found = unpack(&packed).map_err(|reason| StoreError::Unreadable { name: format!("blob {key}"), reason })?;
        let room = limit - entries.len();
        entries.extend(found.into_iter().filter(|entry| entry.cursor() > after).take(room));
    }
    Ok(entries)
}

fn unpack(packed: &[u8]) -> Result<Vec<LogEntry>, String> {
    let bytes = zstd::zstd_safe::get_frame_content_size(packed).map_err(|_| "it is not what zstd writes")?;
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| *bytes <= MAX_FRAME);
    let bytes = bytes.ok_or("a frame says that it is far too big")?;
    let lines = zstd::bulk::decompress(packed, bytes).map_err(|error| error.to_string())?;
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(|error| error.to_string())).collect()
}
