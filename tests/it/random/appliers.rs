//! What is made of a document by an update from an oplog: by this program and by servers, on random documents.

use bson::{Document, RawDocument, RawDocumentBuf, doc, rawdoc};
use futures_util::TryStreamExt;
use mongodb::Client;

use super::draw::Draw;
use super::seed;
use crate::harness::{ReplicaSet, ReplicaSetOptions};
use snapsync::oplog::entry::{Entry, Kind};
use snapsync::oplog::update::Update;

const CASES: i32 = 600;

fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

async fn server(version: &'static str) -> ReplicaSet {
    ReplicaSet::start(ReplicaSetOptions::default().version(version)).await
}

/// `CASES` documents with their number as `_id`.
async fn fill(client: &Client, draw: &mut Draw) -> Vec<RawDocumentBuf> {
    let documents: Vec<Document> = (0..CASES).map(|id| draw.document(id)).collect();
    let collection = client.database("shop").collection::<Document>("c");
    collection.insert_many(&documents).await.unwrap();
    read(client).await
}

async fn read(client: &Client) -> Vec<RawDocumentBuf> {
    let collection = client.database("shop").collection::<RawDocumentBuf>("c");
    let found = collection.find(doc! {}).sort(doc! {"_id": 1}).await.unwrap();
    found.try_collect().await.unwrap()
}

/// Has the server apply these, each as the `o` of an oplog entry, to the document of its number.
async fn apply_ops(client: &Client, updates: &[RawDocumentBuf]) {
    for (run, updates) in updates.chunks(100).enumerate() {
        let mut operations = bson::RawArrayBuf::new();
        for (place, o) in updates.iter().enumerate() {
            let id = i32::try_from(run * 100 + place).unwrap();
            operations.push(rawdoc! {"op": "u", "ns": "shop.c", "o": o.clone(), "o2": {"_id": id}});
        }
        let command = rawdoc! {"applyOps": operations};
        let reply = client.database("admin").run_raw_command(command).await;
        assert!(reply.is_ok(), "{reply:?}");
    }
}

fn show(document: &RawDocument) -> String {
    Document::try_from(document).map_or_else(|error| error.to_string(), |d| d.to_string())
}

fn compare(seed: u64, pre: &RawDocument, o: &RawDocument, ours: &RawDocument, post: &RawDocument) {
    assert_eq!(
        ours.as_bytes(),
        post.as_bytes(),
        "SNAPSYNC_SEED={seed}\nbefore: {}\nupdate: {}\nours:   {}\nserver: {}",
        show(pre),
        show(o),
        show(ours),
        show(post),
    );
}

/// The operator format over documents that know nothing of it, as in a window that is applied again.
async fn modifiers_on(version: &'static str, by_bytes: bool) {
    let seed = seed();
    let mut draw = Draw::new(seed);
    let set = server(version).await;
    let before = fill(set.client(), &mut draw).await;
    let updates: Vec<RawDocumentBuf> = (0..CASES).map(|_| raw(&draw.modifier(by_bytes))).collect();
    apply_ops(set.client(), &updates).await;
    for ((pre, o), post) in before.iter().zip(&updates).zip(read(set.client()).await) {
        let ours = Update::Modifier(o).apply(pre).unwrap();
        compare(seed, pre, o, &ours, &post);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_before_5_0_does_what_4_4_does_with_it() {
    modifiers_on("4.4.2", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_before_5_0_does_what_6_0_does_with_it() {
    modifiers_on("6.0.5", false).await;
}

/// What clients write, as the source's own oplog says it: applied to the document as it was before, it makes the one
/// that the source has.
async fn logged_updates_of(version: &'static str) -> usize {
    let seed = seed();
    let mut draw = Draw::new(seed);
    let set = server(version).await;
    let client = set.client();
    let mut documents = fill(client, &mut draw).await;
    let shop = client.database("shop");
    for id in 0..CASES {
        let update = doc! {"q": {"_id": id}, "u": draw.update(id)};
        // Some make no sense for the document they meet.
        drop(shop.run_command(doc! {"update": "c", "updates": [update]}).await);
    }
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let entries = oplog.find(doc! {"op": "u", "ns": "shop.c"}).await.unwrap();
    let entries: Vec<RawDocumentBuf> = entries.try_collect().await.unwrap();
    let mut partial = 0;
    for entry in &entries {
        let update = match Entry::decode(entry).unwrap().operation.kind {
            Kind::Diff { id, diff } => (id, Update::Diff(diff)),
            Kind::LegacyModify { id, modifier } => (id, Update::Modifier(modifier)),
            Kind::Replace { id, doc } => {
                documents[usize::try_from(id.as_i64().unwrap()).unwrap()] = doc.to_owned();
                continue;
            }
            other => panic!("{other:?}"),
        };
        let (id, update) = update;
        let document = &mut documents[usize::try_from(id.as_i64().unwrap()).unwrap()];
        *document = update.apply(document).unwrap();
        partial += 1;
    }
    for (ours, post) in documents.iter().zip(read(client).await) {
        let id = post.get_i32("_id").unwrap();
        let of = |entry: &&RawDocumentBuf| {
            entry.get_document("o2").and_then(|o2| o2.get_i32("_id")).is_ok_and(|found| found == id)
        };
        let o = entries.iter().find(of).unwrap_or(&post);
        compare(seed, ours, o, ours, &post);
    }
    partial
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oplog_of_4_2_leads_to_what_4_2_holds() {
    assert!(logged_updates_of("4.2.6").await > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oplog_of_4_4_leads_to_what_4_4_holds() {
    assert!(logged_updates_of("4.4.2").await > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oplog_of_6_0_leads_to_what_6_0_holds() {
    assert!(logged_updates_of("6.0.5").await > 100);
}

/// Diffs over documents that they were not made for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diff_over_another_document_does_what_6_0_does_with_it() {
    let seed = seed();
    let mut draw = Draw::new(seed);
    let set = server("6.0.5").await;
    let client = set.client();
    fill(client, &mut draw).await;
    // A change to something similar is logged as a diff.
    for id in 0..CASES {
        let update = doc! {"q": {"_id": id}, "u": draw.update(id)};
        drop(client.database("shop").run_command(doc! {"update": "c", "updates": [update]}).await);
    }
    let oplog = client.database("local").collection::<RawDocumentBuf>("oplog.rs");
    let entries = oplog.find(doc! {"op": "u", "ns": "shop.c", "o.$v": 2}).await.unwrap();
    let entries: Vec<RawDocumentBuf> = entries.try_collect().await.unwrap();
    let diffs: Vec<RawDocumentBuf> =
        entries.iter().map(|entry| entry.get_document("o").unwrap().to_owned()).collect();
    assert!(diffs.len() > 100);
    client.database("shop").collection::<Document>("c").drop().await.unwrap();
    let before = fill(client, &mut draw).await;
    apply_ops(client, &diffs).await;
    for ((pre, o), post) in before.iter().zip(&diffs).zip(read(client).await) {
        let ours = Update::Diff(o.get_document("diff").unwrap()).apply(pre).unwrap();
        compare(seed, pre, o, &ours, &post);
    }
}
