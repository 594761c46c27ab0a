//! What the replay changes, noted while somebody wants to compare just that later: `_id`s on disk, in bounded space.
//! Where they are too many, or a definition changed, whole collections are noted instead. Nothing of it has to survive
//! a crash.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bson::{RawDocumentBuf, Uuid};
use twox_hash::XxHash3_128;

use super::plan::{CollectionChange, Definition, Stage};
use super::tally::Tally;

/// Bytes of `_id`s on disk at the most.
pub const BYTES_MAX: u64 = 256 << 20;
/// `_id`s that are remembered, so that one that changes again and again is noted once. A hash: nobody chooses `_id`s so
/// that they collide.
const REMEMBERED_MAX: usize = 100_000;

/// Notes, as long as it is asked to. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Noted {
    notes: Arc<Mutex<Option<Notes>>>,
    tally: Arc<Mutex<Option<Tally>>>,
}

#[derive(Debug)]
struct Notes {
    folder: PathBuf,
    /// Counts the files.
    number: u64,
    file: Option<BufWriter<File>>,
    bytes: u64,
    bytes_max: u64,
    remembered: HashSet<u128>,
    whole: BTreeSet<Uuid>,
    /// Bytes in the file of each collection.
    sizes: BTreeMap<Uuid, u64>,
    /// The disk failed: anything may have changed.
    is_lost: bool,
}

/// What was changed since it was asked for the last time.
#[derive(Debug, Default)]
pub struct Changed {
    /// Collections, by their UUID on the source, that have to be compared whole.
    pub whole: BTreeSet<Uuid>,
    /// Everything has to be.
    pub everything: bool,
    /// Single documents.
    pub documents: Option<Documents>,
}

impl Noted {
    fn notes(&self) -> MutexGuard<'_, Option<Notes>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to note, in a folder of its own.
    ///
    /// # Errors
    /// The disk.
    pub fn start(&self, folder: &Path, bytes_max: u64) -> io::Result<()> {
        self.stop();
        // What an earlier run left means nothing.
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(folder)?,
        }
        let mut notes = Notes {
            folder: folder.to_owned(),
            number: 0,
            file: None,
            bytes: 0,
            bytes_max,
            remembered: HashSet::new(),
            whole: BTreeSet::new(),
            sizes: BTreeMap::new(),
            is_lost: false,
        };
        notes.next_file()?;
        *self.notes() = Some(notes);
        Ok(())
    }

    fn tally(&self) -> MutexGuard<'_, Option<Tally>> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to add up by how much numbers of documents change.
    pub fn count(&self) {
        *self.tally() = Some(Tally::default());
    }

    /// By how much the number of documents of a collection on the source has changed so far, by its UUID there; `None`
    /// if that is not known.
    #[must_use]
    pub fn net(&self, uuid: &Uuid) -> Option<i64> {
        self.tally().as_ref().and_then(|tally| tally.net(uuid))
    }

    /// Ends, and removes what was noted.
    pub fn stop(&self) {
        *self.tally() = None;
        if let Some(notes) = self.notes().take()
            && let Err(error) = std::fs::remove_dir_all(&notes.folder)
        {
            tracing::debug!("{}: {error}", notes.folder.display());
        }
    }

    /// Takes away what was noted so far; noting goes on.
    #[must_use]
    pub fn take(&self) -> Changed {
        let mut notes = self.notes();
        match notes.as_mut() {
            Some(notes) => notes.take(),
            None => Changed { everything: true, ..Changed::default() },
        }
    }

    /// Takes away the collections that have to be compared whole, and whether everything has to be; single documents
    /// stay noted.
    #[must_use]
    pub fn whole(&self) -> (BTreeSet<Uuid>, bool) {
        match self.notes().as_mut() {
            Some(notes) => (std::mem::take(&mut notes.whole), notes.is_lost),
            None => (BTreeSet::new(), true),
        }
    }

    /// These documents were taken away, but not compared: they are noted again.
    pub fn put_back(&self, uuid: Uuid, ids: &[RawDocumentBuf]) {
        if let Some(notes) = self.notes().as_mut() {
            ids.iter().for_each(|id| notes.note(uuid, id));
        }
    }

    /// These documents are about to be changed.
    pub(super) fn stage(&self, stage: &Stage, tolerant: bool) {
        if let Some(tally) = self.tally().as_mut() {
            tally.stage(stage, tolerant);
        }
        if let Some(notes) = self.notes().as_mut() {
            for (uuid, changes) in &stage.collections {
                for id in changes.ids() {
                    notes.note(*uuid, &id);
                }
            }
        }
    }

    /// This is about to be defined.
    pub(super) fn definition(&self, definition: &Definition) {
        if let Some(tally) = self.tally().as_mut() {
            tally.definition(definition);
        }
        if let Some(notes) = self.notes().as_mut()
            && let Definition::Collection { uuid, change } = definition
            && !matches!(change, CollectionChange::Drop)
        {
            notes.whole.insert(*uuid);
        }
    }
}

impl Notes {
    fn next_file(&mut self) -> io::Result<()> {
        self.number += 1;
        let file = File::create(self.folder.join(self.number.to_string()))?;
        self.file = Some(BufWriter::new(file));
        self.bytes = 0;
        self.remembered.clear();
        self.sizes.clear();
        Ok(())
    }

    fn note(&mut self, uuid: Uuid, id: &RawDocumentBuf) {
        if self.is_lost || self.whole.contains(&uuid) {
            return;
        }
        let key = key(uuid, id);
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.clear();
        }
        if !self.remembered.insert(XxHash3_128::oneshot(&key)) {
            return;
        }
        if self.bytes + key.len() as u64 > self.bytes_max {
            self.make_room();
            if self.bytes + key.len() as u64 > self.bytes_max {
                self.whole.insert(uuid);
            }
            if self.is_lost || self.whole.contains(&uuid) {
                return;
            }
        }
        if self.write(uuid, &key).is_err() {
            self.is_lost = true;
        }
    }

    /// A BSON document says its own length.
    fn write(&mut self, uuid: Uuid, key: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(key)?;
        self.bytes += key.len() as u64;
        *self.sizes.entry(uuid).or_default() += key.len() as u64;
        Ok(())
    }

    /// The collections that take the most room are noted whole from now on, until half of the room is free.
    fn make_room(&mut self) {
        let mut sizes: Vec<(u64, Uuid)> =
            self.sizes.iter().map(|(uuid, size)| (*size, *uuid)).collect();
        sizes.sort_unstable();
        let mut left = self.bytes;
        while left > self.bytes_max / 2
            && let Some((size, uuid)) = sizes.pop()
        {
            left -= size;
            self.whole.insert(uuid);
        }
        if self.rewrite().is_err() {
            self.is_lost = true;
        }
    }

    /// Takes out of the file what is noted whole.
    fn rewrite(&mut self) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.flush()?;
        }
        let path = self.folder.join(self.number.to_string());
        let mut documents = Documents::open(&path)?;
        std::fs::remove_file(path)?;
        self.next_file()?;
        while let Some((uuid, id)) = documents.next_id()? {
            if !self.whole.contains(&uuid) {
                self.write(uuid, &key(uuid, &id))?;
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Changed {
        let path = self.folder.join(self.number.to_string());
        let is_flushed = self.file.as_mut().is_some_and(|file| file.flush().is_ok());
        let documents = Documents::open(&path).ok().filter(|_| is_flushed && !self.is_lost);
        let whole = std::mem::take(&mut self.whole);
        let everything = documents.is_none();
        // Open, it can be read to its end.
        let _removed = std::fs::remove_file(path);
        self.is_lost = self.next_file().is_err();
        Changed { whole, everything, documents }
    }
}

fn key(uuid: Uuid, id: &RawDocumentBuf) -> Vec<u8> {
    let bytes = id.as_bytes();
    let mut key = Vec::with_capacity(16 + bytes.len());
    key.extend_from_slice(&uuid.bytes());
    key.extend_from_slice(bytes);
    key
}

/// Documents that were changed.
#[derive(Debug)]
pub struct Documents {
    reader: BufReader<File>,
}

impl Documents {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { reader: BufReader::new(File::open(path)?) })
    }

    /// The next one, by its collection's UUID on the source and `{_id}`; `None` behind the last one.
    ///
    /// # Errors
    /// The disk.
    pub fn next_id(&mut self) -> io::Result<Option<(Uuid, RawDocumentBuf)>> {
        let mut uuid = [0; 16];
        match self.reader.read_exact(&mut uuid) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let mut length = [0; 4];
        self.reader.read_exact(&mut length)?;
        let rest = usize::try_from(i32::from_le_bytes(length)).ok().and_then(|n| n.checked_sub(4));
        let rest = rest.ok_or(io::ErrorKind::InvalidData)?;
        let mut bytes = length.to_vec();
        bytes.resize(4 + rest, 0);
        self.reader.read_exact(&mut bytes[4..])?;
        let id = RawDocumentBuf::from_bytes(bytes).map_err(io::Error::other)?;
        Ok(Some((Uuid::from_bytes(uuid), id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn start(bytes_max: u64) -> (tempfile::TempDir, Noted) {
        let folder = tempfile::tempdir().unwrap();
        let noted = Noted::default();
        noted.start(&folder.path().join("changed"), bytes_max).unwrap();
        (folder, noted)
    }

    fn note(noted: &Noted, uuid: Uuid, id: i32) {
        noted.notes().as_mut().unwrap().note(uuid, &rawdoc! { "_id": id });
    }

    fn ids(changed: &mut Changed) -> Vec<(Uuid, i32)> {
        let documents = changed.documents.as_mut().unwrap();
        let mut ids = Vec::new();
        while let Some((uuid, id)) = documents.next_id().unwrap() {
            ids.push((uuid, id.get_i32("_id").unwrap()));
        }
        ids
    }

    #[test]
    fn each_change_is_noted_once_until_it_is_taken() {
        let (_folder, noted) = start(BYTES_MAX);
        let [a, b] = [Uuid::new(), Uuid::new()];
        for (uuid, id) in [(a, 1), (b, 1), (a, 1), (a, 2)] {
            note(&noted, uuid, id);
        }
        let mut first = noted.take();
        note(&noted, a, 1);
        assert_eq!(ids(&mut first), [(a, 1), (b, 1), (a, 2)]);
        assert!(first.whole.is_empty() && !first.everything);
        assert_eq!(ids(&mut noted.take()), [(a, 1)]);
        noted.stop();
        assert!(noted.take().everything, "nothing was noted");
    }

    #[test]
    fn where_there_is_no_room_whole_collections_are_noted_and_give_theirs_back() {
        let (folder, noted) = start(1000);
        let [large, small] = [Uuid::new(), Uuid::new()];
        note(&noted, small, 1);
        for id in 0..100 {
            note(&noted, large, id);
        }
        note(&noted, small, 2);
        let used = noted.notes().as_ref().unwrap().bytes;
        assert_eq!(used, 2 * (16 + 14), "what is compared whole takes no room");
        let file = std::fs::read_dir(folder.path().join("changed")).unwrap();
        assert_eq!(file.count(), 1, "and no old file is left");
        assert_eq!(noted.whole(), (BTreeSet::from([large]), false), "the others stay");
        note(&noted, large, 1);
        let mut changed = noted.take();
        assert!(changed.whole.is_empty() && !changed.everything);
        let expected = [(small, 1), (small, 2), (large, 1)];
        assert_eq!(ids(&mut changed), expected, "what changes while it is compared whole");
        note(&noted, large, 7);
        noted.put_back(small, &[rawdoc! { "_id": 8 }]);
        assert_eq!(ids(&mut noted.take()), [(large, 7), (small, 8)], "there is room again");
    }

    #[test]
    fn many_small_collections_make_room_in_few_steps_and_one_large_id_has_none() {
        let (_folder, noted) = start(3000);
        let uuids: Vec<Uuid> = (0..1000).map(|_| Uuid::new()).collect();
        for uuid in &uuids {
            note(&noted, *uuid, 1);
            assert!(noted.notes().as_ref().unwrap().bytes <= 3000);
        }
        let files = noted.notes().as_ref().unwrap().number;
        assert!(files < 30, "{files} rewritings for 1000 collections");
        let large = rawdoc! { "_id": "x".repeat(4000) };
        let uuid = Uuid::new();
        noted.put_back(uuid, &[large]);
        let mut changed = noted.take();
        assert!(changed.whole.contains(&uuid) && !changed.everything);
        let single: BTreeSet<Uuid> = ids(&mut changed).into_iter().map(|(uuid, _)| uuid).collect();
        assert!(uuids.iter().all(|uuid| changed.whole.contains(uuid) != single.contains(uuid)));
    }

    #[test]
    fn a_lost_disk_means_everything() {
        let (_folder, noted) = start(BYTES_MAX);
        noted.notes().as_mut().unwrap().file = None;
        note(&noted, Uuid::new(), 1);
        assert!(noted.take().everything);
        let whole = Uuid::new();
        let change = CollectionChange::Empty;
        noted.definition(&Definition::Collection { uuid: whole, change });
        noted.definition(&Definition::Collection {
            uuid: Uuid::new(),
            change: CollectionChange::Drop,
        });
        let changed = noted.take();
        assert_eq!(changed.whole, BTreeSet::from([whole]));
        assert!(!changed.everything);
    }
}
