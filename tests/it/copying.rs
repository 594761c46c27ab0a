//! The copy itself, with small parts: whatever the `_id`s are, no document falls between two of them.

use std::sync::Arc;
use std::time::Duration;

use bson::{Binary, Bson, DateTime, Decimal128, Document, Timestamp, doc, oid::ObjectId};
use snapsync::config::Uri;
use snapsync::copy::{Copier, Counters, Pace, ProgressStore, prepare};
use snapsync::mongo::{Deployment, PoolOptions, ServerFacts, Side};
use snapsync::retry::Stopped;
use snapsync::selection::Selection;
use snapsync::source::{catalog, start};
use snapsync::state::catalogue::CatalogueStore;
use snapsync::stop::Stop;
use snapsync::target::deadline::{Deadline, Moment};
use snapsync::target::definitions::Definer;
use snapsync::target::writers::Writers;

use crate::harness::{Pair, ReplicaSet, assert_equal, wait_for};

const WORKERS: usize = 4;
const LONG: std::time::Duration = std::time::Duration::from_secs(120);

pub(crate) async fn deployment(side: Side, set: &ReplicaSet) -> Deployment {
    let pool =
        PoolOptions { app_name: "copying".to_owned(), connections: 20, selection_timeout: None };
    let uri = format!("{}&compressors=zlib,snappy,zstd", set.uri());
    Deployment::connect(side, &Uri::parse(&uri).unwrap(), &pool).await.unwrap()
}

/// A copy of everything on the source, in parts of 16 KiB, with its state in `folder`.
async fn copier(pair: &Pair, folder: &std::path::Path) -> Copier {
    let source = deployment(Side::Source, &pair.source).await;
    let target = deployment(Side::Target, &pair.target).await;
    let version = ServerFacts::ask(&target).await.unwrap().version;
    let after = start::choose(&source).await.unwrap().apply_after.ts;
    let catalogue = CatalogueStore::open(folder.join("catalogue.json")).unwrap();
    if catalogue.read().collections.is_empty() {
        let everything = Selection::new(&["*".to_owned()], &[], &[]).unwrap();
        let found = catalog::read(&source, &everything).await.unwrap();
        catalogue.change(|stored| *stored = found);
    }
    let deadline = lasting();
    Copier {
        refusals_max: u32::MAX,
        source,
        definer: Definer::new(
            target.clone(),
            version,
            true,
            "copying".to_owned(),
            deadline.clone(),
        ),
        writers: Writers::start(target, deadline, WORKERS * 2).await.unwrap(),
        catalogue: Arc::new(catalogue),
        after,
        workers: WORKERS,
        part_bytes_min: 16 * 1024,
        memory_bytes_max: 64 * 1024 * 1024,
        pace: Arc::new(Pace::new(0)),
        progress: Arc::new(ProgressStore::open(folder.join("copy.json"), after).unwrap()),
        counters: Arc::new(Counters::default()),
    }
}

/// A lease that lasts as long as the test.
fn lasting() -> Deadline {
    let deadline = Deadline::granted(Moment::now());
    let renewed = deadline.clone();
    tokio::spawn(async move {
        loop {
            renewed.renewed(Moment::now());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    deadline
}

/// How many parts each collection was split into.
fn parts(copier: &Copier) -> Vec<usize> {
    let catalogue = copier.catalogue.read();
    let uuids = catalogue.collections.keys();
    uuids.map(|uuid| copier.progress.of(uuid).parts.len()).collect()
}

/// `_id`s of every type that can be one, in no order, and many of each.
fn ids() -> Vec<Bson> {
    let mut ids = vec![
        Bson::Double(f64::NAN),
        Bson::Double(f64::INFINITY),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Null,
        Bson::MinKey,
        Bson::MaxKey,
        Bson::Boolean(false),
        Bson::Boolean(true),
        Bson::String(String::new()),
        Bson::Document(doc! {}),
    ];
    for n in 1..250_i32 {
        let mixed = n.wrapping_mul(1_597_334_677);
        ids.push(Bson::Int32(mixed));
        ids.push(Bson::Int64(i64::from(mixed) << 20));
        ids.push(Bson::Double(f64::from(mixed) + 0.5));
        ids.push(Bson::Decimal128(format!("{n}.25").parse::<Decimal128>().unwrap()));
        ids.push(Bson::String(format!("{mixed:08x}")));
        ids.push(Bson::ObjectId(ObjectId::new()));
        ids.push(Bson::DateTime(DateTime::from_millis(i64::from(mixed))));
        ids.push(Bson::Timestamp(Timestamp { time: n.unsigned_abs(), increment: 1 }));
        ids.push(Bson::Document(doc! { "a": mixed, "b": f64::NAN }));
        ids.push(Bson::JavaScriptCode(format!("{mixed}")));
        let bytes = mixed.to_be_bytes().to_vec();
        ids.push(Bson::Binary(Binary { subtype: bson::spec::BinarySubtype::Generic, bytes }));
    }
    ids
}

async fn fill(set: &ReplicaSet, collection: &str, ids: Vec<Bson>) {
    let collection = set.client().database("mixed").collection::<Document>(collection);
    let filler = "x".repeat(200);
    let documents = ids.into_iter().map(|id| doc! { "_id": id, "filler": &filler });
    collection.insert_many(documents).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_hold_every_document_whatever_its_id() {
    let pair = Pair::start().await;
    let database = pair.source.client().database("mixed");
    fill(&pair.source, "plain", ids()).await;
    // Each of these orders `_id`s in another way, or has none.
    let collation = doc! { "create": "collated", "collation": { "locale": "sv", "strength": 3 } };
    database.run_command(collation).await.unwrap();
    fill(&pair.source, "collated", ids()).await;
    let capped = doc! { "create": "capped", "capped": true, "size": 8 << 20 };
    database.run_command(capped).await.unwrap();
    fill(&pair.source, "capped", ids()).await;
    let clustered =
        doc! { "create": "clustered", "clusteredIndex": { "key": { "_id": 1 }, "unique": true } };
    // Only servers from 5.3 on know these.
    if database.run_command(clustered).await.is_ok() {
        fill(&pair.source, "clustered", ids()).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let copier = copier(&pair, folder.path()).await;
    let stop = Stop::new();
    prepare::create_all(&copier.definer, &copier.catalogue, &stop).await.unwrap();
    copier.run(&stop).await.unwrap();
    let parts = parts(&copier);
    assert_eq!(parts.iter().filter(|count| **count == 1).count(), 1, "the capped one: {parts:?}");
    assert!(parts.iter().all(|count| [1, 32].contains(count)), "{parts:?}");
    assert_equal(&pair.source, &pair.target).await;
    let (copied, total) = (copier.counters.copied().documents, copier.counters.total().documents);
    // A clustered collection gives the document with the highest `_id` of all in both queries for its last part.
    assert!((total..=total + 1).contains(&copied), "{copied} read of {total}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_goes_on_where_it_was() {
    let pair = Pair::start().await;
    fill(&pair.source, "plain", ids()).await;
    let folder = tempfile::tempdir().unwrap();
    let first = copier(&pair, folder.path()).await;
    let stop = Stop::new();
    prepare::create_all(&first.definer, &first.catalogue, &stop).await.unwrap();
    first.pace.set(200_000);
    let running = tokio::spawn({
        let (first, stop) = (first.clone(), stop.clone());
        async move { first.run(&stop).await }
    });
    wait_for("a part of the documents", LONG, || async {
        let copied = first.counters.copied().documents;
        if copied > 500 { Ok(()) } else { Err(format!("{copied} documents")) }
    })
    .await;
    stop.request();
    assert!(matches!(running.await.unwrap(), Err(Stopped::Stop)));
    let copied = first.counters.copied().documents;
    let all = u64::try_from(ids().len()).unwrap();
    assert!(copied < all, "stopped in the middle");
    let mut second = copier(&pair, folder.path()).await;
    second.progress =
        Arc::new(ProgressStore::open(folder.path().join("copy.json"), first.after).unwrap());
    second.after = first.after;
    second.run(&Stop::new()).await.unwrap();
    assert_equal(&pair.source, &pair.target).await;
    let again = second.counters.copied().documents - all;
    let parts = parts(&second).iter().sum::<usize>();
    assert!(again <= u64::try_from(parts).unwrap(), "at most the last document of each: {again}");
    // As the connection string asks: each side chose the first that both know.
    for set in [&pair.source, &pair.target] {
        let status = set.admin(doc! {"serverStatus": 1}).await;
        let compression = status.get_document("network").unwrap().get_document("compression");
        let zlib = compression.unwrap().get_document("zlib").unwrap();
        let received = zlib.get_document("decompressor").unwrap().get("bytesIn").unwrap();
        assert_ne!(received.as_i64().or(received.as_i32().map(i64::from)), Some(0), "{status}");
    }
}
