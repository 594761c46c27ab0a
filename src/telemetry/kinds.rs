//! A stable `MESSAGE_ID` for every kind of event, to find it by in the journal whatever its words are. Never reused:
//! an event that goes takes its id with it. `packaging/snapsync.catalog` explains those that want it.

macro_rules! kinds {
    ($($name:ident = $id:literal,)*) => {
        $(pub(super) const $name: &str = $id;)*

        /// All of them by name, for tests and documentation.
        pub const KINDS: &[(&str, &str)] = &[$((stringify!($name), $id),)*];
    };
}

kinds! {
    DELTA_COLLECTION = "a78d513bd5ca45409fd2f070ced968c3",
    DELTA_DATABASE = "f8c30f393b4841ac993b4d637a39660d",
    STARTED = "17436cf0c9024f309e5a9389bfe18343",
    STATE_CHANGED = "36ce33b955384b15a4800ab05d6a8c2b",
    COPY_STARTED = "57aa6407d56c4d09a1e2e50b77f4f1ed",
    COPY_PROGRESS = "33857c4d7028401d8916209157382c7e",
    COPY_FINISHED = "53a6e8ba63204d3ba38109c651672b1b",
    LIVE = "2d80d9566ad0491abd73073b0bdf2664",
    LAGGING = "7f3efc4cdfe2464b85e7c83c2b13976b",
    HALTED = "be0501d4c9b54f3da6af80e464ddb17d",
    UNREACHABLE = "c2435a9d492f424e8ff487d4aa6221f6",
    REACHABLE_AGAIN = "d20250ef35af4765986ad77f48bc5e29",
    OPLOG_WINDOW_SHORT = "ca2737a7351d4221ae860cbe71217780",
    OPLOG_WINDOW_ENOUGH = "69df414a17784652b71b60510f6d811f",
    SPOOL_SHORT = "691bd1436a1e4edb9378170c2d138def",
    RESYNC_STARTED = "b783345eaac242ec9f5a5e4f036a0406",
    RESYNC_FINISHED = "a628ab775d34442399ac58b335f259e8",
    NOT_COUNTED = "8eab7b6ac1a44052816c158085d38627",
    VERIFIED = "29aa72fa13d24182bc3862433e07e5ca",
    VERIFIED_DIFFERENT = "209e0ae963104a6480b4b1dbe128298f",
    CUTOVER = "325c6e85c35145719d061c47b2014d14",
    CUTOVER_GIVEN_UP = "04fcf99a36b4438e8b569f143ecf3a5d",
    CUT_OVER = "79a2d8f4657d4179a217c537dbbf9b6e",
    SNAPSHOT_FINISHED = "de6dcfd0468b47a285928bf5095af59b",
    SNAPSHOT_FAILED = "c7746342dc994ca3adf4469fa0e63703",
    NO_PROGRESS = "ed9d2a994915490d9ee4ab3f340f75f7",
    LOG_DROPPED = "a50ebb98d0934215978b4e48e2090f77",
    FAILED = "098c88b27a2f4351929915d7afe538d7",
    STOPPING = "3281bfd25e10402c847f6ad1146a3b6e",
    STOPPED = "f77e29fc949544a6bc9adc6b1f59d2f5",
}
