//! Names of steps, for metrics, logs and fail points. The lists are complete: a step without a name does not compile.

use node_plan::{step::VmStep, storage::disk::DiskStep};

macro_rules! names {
    ($all:ident, $name:ident, $type:ident: $($step:ident),* $(,)?) => {
        /// All of them.
        pub const $all: &[&str] = &[$(stringify!($step)),*];

        /// Name of a step.
        pub fn $name(step: &$type) -> &'static str {
            match step {
                $($type::$step { .. } => stringify!($step),)*
            }
        }
    };
}

names! {
    STEP_NAMES, step_name, VmStep:
    WriteLedger,
    WritePermit,
    RemovePermit,
    WriteDiskToken,
    RemoveDiskToken,
    MakeSeed,
    RemoveSeed,
    MakeOverlay,
    RemoveOverlay,
    EnsureStateDir,
    CopyTpmIn,
    CopyTpmOut,
    KeepHardware,
    RemoveStateDir,
    StartDomain,
    RequestShutdown,
    Destroy,
    Reset,
    InjectNmi,
    Pause,
    Resume,
    SetLink,
    SetMedia,
    SetNetwork,
    EndWithGuest,
    SetOnReboot,
    WriteMetadata,
    Undefine,
    FlushDisks,
}

names! {
    DISK_STEP_NAMES, disk_step_name, DiskStep:
    Create,
    Fetch,
    Copy,
    Grow,
    RemovePartials,
    Restore,
    WriteSidecar,
    MoveToTrash,
    MarkRetained,
}
