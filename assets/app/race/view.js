// What a task's tab shows: the newest run of that task, and how it stands. A run goes on while another tab is in sight.

class View {
  constructor(task) {
    this.task = task;
    this.account = null; // of the run that the panes show
    this.state = "idle";
    this.text = "Ready.";
    this.tenth = null; // of the prompt, told while it is processed
    this.offered = ""; // a part of an article that can be used instead
    this.stale = ""; // why its run says nothing of the newest input: that was "refused", or the run's is "replaced"
  }

  // Whether the run in its panes is not that of the newest input.
  get isPrevious() {
    return this.account !== null && this.stale !== "";
  }

  // Whether that run is the one in its panes.
  has(run) {
    return this.account !== null && this.account.run === run;
  }
}
