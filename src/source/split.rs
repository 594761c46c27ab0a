//! Where to split a large collection, so that several readers share it.
//!
//! The points are `_id`s of a random sample, in the order that the server itself gives them: it alone knows how types
//! and collations compare. Any points would do, because a part is read between two places in the `_id` index and not by
//! a comparison: they only decide how even the parts are.

use bson::{Document, RawDocumentBuf, doc};

use super::scan::Size;
use crate::mongo::{Deployment, Error, cursor_documents};
use crate::namespace::Namespace;

/// Parts of one collection at the most.
const PARTS_MAX: u64 = 32;
/// Samples for each part: more make the parts more even.
const SAMPLES: u64 = 20;
/// The server looks into a collection at random places as long as less than a twentieth of it is asked for, and reads
/// it from end to end otherwise.
const SAMPLED_SHARE: u64 = 25;

/// How many parts a collection of this size makes, and how many samples that takes.
fn parts_and_samples(size: Size, part_bytes_min: u64) -> (u64, u64) {
    let samples_max = size.documents / SAMPLED_SHARE;
    let parts = (size.bytes / part_bytes_min.max(1)).clamp(1, PARTS_MAX).min(samples_max.max(1));
    (parts, (parts * SAMPLES).min(samples_max))
}

/// `{_id}`s in ascending order that part a collection of this size into runs of about equal length, which hold about
/// `part_bytes_min` or more; none if it is small.
///
/// # Errors
/// The call failed; with a code if the server cannot sample this collection, which then stays whole.
pub async fn points(
    source: &Deployment,
    collection: &Namespace,
    collation: Option<&Document>,
    size: Size,
    part_bytes_min: u64,
) -> Result<Vec<RawDocumentBuf>, Error> {
    let (parts, samples) = parts_and_samples(size, part_bytes_min);
    if parts < 2 {
        return Ok(Vec::new());
    }
    // Grouped, because a place may be hit twice.
    let pipeline = vec![
        doc! { "$sample": { "size": i64::try_from(samples).unwrap_or(i64::MAX) } },
        doc! { "$group": { "_id": "$_id" } },
        doc! { "$sort": { "_id": 1 } },
    ];
    let mut command =
        doc! { "aggregate": &collection.collection, "pipeline": pipeline, "cursor": {} };
    if let Some(collation) = collation {
        command.insert("collation", collation.clone());
    }
    let action = format!("look for places to split {collection}");
    let sample = cursor_documents(source, &collection.database, &action, command).await?;
    Ok(evenly(sample, usize::try_from(parts).unwrap_or(1)))
}

/// The places that part `sample` into this many runs.
fn evenly<T>(sample: Vec<T>, parts: usize) -> Vec<T> {
    let count = sample.len();
    let parts = parts.min(count);
    let wanted: Vec<usize> = (1..parts).map(|part| part * count / parts).collect();
    let kept = sample.into_iter().enumerate().filter(|(place, _)| wanted.contains(place));
    kept.map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_many_as_the_size_and_the_sampling_allow() {
        let of =
            |documents, mib: u64| parts_and_samples(Size { documents, bytes: mib << 20 }, 64 << 20);
        assert_eq!(of(1_000_000, 1), (1, 20));
        assert_eq!(of(1_000_000, 1024), (16, 320));
        assert_eq!(of(1_000_000, 1 << 20), (32, 640));
        assert_eq!(of(1_000, 1024), (16, 40), "large documents: fewer samples");
        assert_eq!(of(100, 1024), (4, 4), "fewer parts");
        assert_eq!(of(20, 320), (1, 0));
    }

    #[test]
    fn points_part_the_sample_evenly() {
        assert_eq!(evenly((0..100).collect(), 4), [25, 50, 75]);
        assert_eq!(evenly(vec![1, 2], 4), [2]);
        assert_eq!(evenly(Vec::<i32>::new(), 4), [0; 0]);
    }
}
