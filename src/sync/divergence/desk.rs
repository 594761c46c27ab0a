//! Where those who watch the target and the replay meet: the replay is asked for a *cut*, a pair of optimes at which
//! both sides are the same, and is told what was found to differ.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bson::Uuid;
use tokio::sync::oneshot;

use crate::position::Cut;

/// The meeting place. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Desk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: Vec<oneshot::Sender<Cut>>,
    found: BTreeMap<Uuid, String>,
}

impl Desk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the next cut. The answer is dropped with the replay, when that ends before.
    #[must_use]
    pub fn ask(&self) -> oneshot::Receiver<Cut> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.inner();
        inner.asked.retain(|asked| !asked.is_closed());
        inner.asked.push(sender);
        receiver
    }

    /// Whether anybody waits for a cut.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        !self.inner().asked.is_empty()
    }

    /// Answers everybody who waits.
    pub fn answer(&self, cut: Cut) {
        for asked in std::mem::take(&mut self.inner().asked) {
            // Whoever asked may have gone.
            let _gone = asked.send(cut.clone());
        }
    }

    /// Nobody will answer: the replay has ended.
    pub fn close(&self) {
        self.inner().asked.clear();
    }

    /// Reports a collection, by its UUID on the source, that differs, with what was found.
    pub fn report(&self, uuid: Uuid, what: String) {
        self.inner().found.entry(uuid).or_insert(what);
    }

    /// What was found since the last time.
    #[must_use]
    pub fn take_found(&self) -> BTreeMap<Uuid, String> {
        std::mem::take(&mut self.inner().found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Ts;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn everybody_who_asked_gets_the_next_cut_or_hears_that_there_is_none() {
        let desk = Desk::default();
        let (first, second) = (desk.ask(), desk.ask());
        let held = BTreeSet::new();
        let cut = Cut { source: Ts::new(1, 1), target: Ts::new(2, 1), held };
        desk.answer(cut.clone());
        assert_eq!((first.await, second.await), (Ok(cut.clone()), Ok(cut)));
        let third = desk.ask();
        assert!(desk.is_asked());
        desk.close();
        assert!(third.await.is_err());
    }
}
