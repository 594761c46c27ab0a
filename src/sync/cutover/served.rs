//! A daemon whose migration is over: it answers questions and writes nothing, to neither side. It needs neither of
//! them, so that it can be asked for as long as its state directory is kept.

use std::path::Path;

use tokio::sync::mpsc;

use super::report;
use crate::config::Config;
use crate::exit::Exit;
use crate::http::control::{Command, Refusal};
use crate::status::{
    CutoverOutcome, CutoverStatus, CutoverStep, OplogPlace, State, StatusBoard, WriteBlock,
};
use crate::stop::Stop;
use crate::sync::commands;
use crate::sync::phase::Phase;
use crate::sync::record::RecordStore;

/// Whether the migration of this state directory is over.
///
/// # Errors
/// The disk, or a damaged file.
pub(in crate::sync) fn is_over(directory: &Path) -> Result<bool, Exit> {
    let record = RecordStore::find(directory)?;
    Ok(record.is_some_and(|record| matches!(record.phase, Phase::CutOver { .. })))
}

/// Shows what there is to tell.
pub(in crate::sync) fn show(config: &Config, board: &StatusBoard) {
    let found = report::read(&config.state.directory);
    board.enter(State::CutOver, None);
    board.update(|status| {
        status.copy.complete = true;
        let Some(report) = found else { return };
        (status.source, status.target) = (report.source.clone(), report.target.clone());
        status.since = report.finished;
        let last = &report.final_optime;
        status.resume_point = Some(OplogPlace { ts: last.at.ts, wall: last.wall });
        let mut cutover = CutoverStatus::begun(report.began, report.verify, false);
        (cutover.step, cutover.outcome) = (CutoverStep::Done, Some(CutoverOutcome::CutOver));
        cutover.blocked = report.write_block == WriteBlock::Ours;
        cutover.report = Some(report);
        status.cutover = Some(cutover);
    });
}

/// Refuses whatever is asked for, until stopped.
pub(in crate::sync) async fn serve(commands: &mut mpsc::Receiver<Command>, stop: &Stop) {
    loop {
        tokio::select! {
            () = stop.requested() => return,
            Some(command) = commands.recv() => {
                let text = "the target has taken over: nothing is written to it any more \
                            (`snapsync reset` forgets the migration)";
                commands::answer(command.reply, Err(Refusal::wrong_state(text)));
            }
        }
    }
}
