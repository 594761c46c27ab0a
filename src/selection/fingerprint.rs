//! Short texts by which a change of the selection is seen after a restart.

use std::collections::BTreeSet;

use super::Selection;
use super::pattern::Pattern;

impl Selection {
    /// A short text that changes when the selection or a rename changes and never otherwise: not with the order of
    /// the entries, not with the version of snapsync. Kept in the state to see a change after a restart.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let texts = |set: &BTreeSet<Pattern>| set.iter().map(ToString::to_string).collect();
        fnv1a(&[texts(&self.include), texts(&self.exclude), self.rename_lines()])
    }

    /// Like [`Selection::fingerprint`], of the renames alone: a changed rename halts, a changed selection does not.
    #[must_use]
    pub fn rename_fingerprint(&self) -> String {
        fnv1a(&[self.rename_lines()])
    }

    fn rename_lines(&self) -> Vec<String> {
        let databases = self.databases.iter().map(|(from, to)| format!("{from}\n{to}"));
        let collections = self.collections.iter().map(|(from, to)| format!("{from}\n{to}"));
        databases.chain(collections).collect()
    }
}

/// FNV-1a, 64 bits, in hexadecimal. Written out here because the result is kept on disk: the standard library's
/// hashers may change between releases. A zero byte ends each text and a one byte each list; names hold neither.
fn fnv1a(lists: &[Vec<String>]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    for list in lists {
        for text in list {
            text.bytes().for_each(&mut eat);
            eat(0);
        }
        eat(1);
    }
    format!("{hash:016x}")
}
