//! Commands under way, at fixed places, so that operations can name them by number.

use kvd_proto::Time;

use crate::nvme::command::Command;

#[derive(Debug)]
pub(super) struct Tasks {
    tasks: Box<[Option<(Command, Time)>]>,
    free: Vec<usize>,
}

impl Tasks {
    pub(super) fn new(most: usize) -> Self {
        Self { tasks: std::iter::repeat_with(|| None).take(most).collect(), free: (0..most).rev().collect() }
    }

    #[expect(clippy::result_large_err, reason = "the command goes back to its owner, unboxed: nothing is allocated")]
    pub(super) fn add(&mut self, command: Command) -> Result<usize, Command> {
        let Some(place) = self.free.pop() else { return Err(command) };
        self.tasks[place] = Some((command, Time::ZERO));
        Ok(place)
    }

    pub(super) fn get(&self, task: usize) -> &Command {
        &self.tasks[task].as_ref().expect("a task lives until it is finished").0
    }

    /// Its I/O begins.
    pub(super) fn started(&mut self, task: usize, now: Time) {
        self.tasks[task].as_mut().expect("a task lives until it is finished").1 = now;
    }

    pub(super) fn started_at(&self, task: usize) -> Time {
        self.tasks[task].as_ref().expect("a task lives until it is finished").1
    }

    pub(super) fn remove(&mut self, task: usize) -> (Command, Time) {
        self.free.push(task);
        self.tasks[task].take().expect("a task is finished once")
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len() - self.free.len()
    }
}
