//! Several operations as one: the same as one after the other.

use super::{By, CreateArgs, NO_INODE, OpenArgs, Run, Who, code_of};
use crate::store::{CloseArgs, Report, SetAttrArgs, Written};
use crate::tests::model::Model;
use crate::tests::{abandon, code, root};
use kiln_types::{Attr, Code, InodeId, Result};

impl Run {
    pub(super) async fn batch(&mut self, who: &Who) {
        match self.rng.u8(..4) {
            0 => self.report_many().await,
            1 => self.create_many(who).await,
            2 => self.close_many().await,
            _ => self.stat_many(who).await,
        }
    }

    fn report_of(&self, at: usize) -> Report {
        let file = &self.open[at];
        Report { inode: file.inode, session: file.session, written: file.written }
    }

    /// The open files of a client.
    fn files_of(&self, client: usize) -> Vec<usize> {
        (0..self.open.len()).filter(|at| self.open[*at].client == client).collect()
    }

    /// The store took in a report, of a file that has these attributes now.
    fn reported(&mut self, at: usize, attr: &Attr, by: &By<'_>) {
        let (client, inode, written) = {
            let file = &self.open[at];
            (file.client, file.inode, file.written)
        };
        if written.end > 0 {
            let counts = attr.epoch == written.epoch;
            self.model.written(by, inode, if counts { written.end } else { 0 });
        }
        self.open[at].written = Written::default();
        self.learn(client, attr);
    }

    /// A client reports what it wrote to all its open files, and of one that it does not have.
    async fn report_many(&mut self) {
        let client = self.any_client();
        let mine = self.files_of(client);
        let mut reports: Vec<_> = mine.iter().map(|at| self.report_of(*at)).collect();
        let strange = self.rng.usize(..=self.open.len());
        if self.open.get(strange).is_some_and(|file| file.client != client) {
            reports.push(self.report_of(strange));
        }
        let change = self.change(client, &root());
        self.begin();
        let told = insist!(self, s => async { s.report(&change, &reports).await });
        self.expect(format!("report {reports:?}"), &told, Ok(()));
        let mut told = told.expect("checked").into_iter();
        for at in mine {
            let attr = told.next().expect("as many answers");
            if code_of(&attr) == Some(Code::Busy) {
                continue;
            }
            let by = By { caller: &root().caller, now: self.span() };
            self.expect(format!("its report {}", self.open[at].inode), &attr, Ok(()));
            self.reported(at, &attr.expect("checked"), &by);
        }
        let strange: Vec<_> = told.map(|attr| code_of(&attr)).collect();
        assert!(strange.iter().all(|code| *code == Some(Code::StaleHandle)), "{strange:?}");
    }

    /// Some names twice, some that are there.
    async fn create_many(&mut self, who: &Who) {
        let (client, nameless) = (self.any_client(), self.rng.u8(..3) == 0);
        let read = nameless || self.rng.bool();
        let open = OpenArgs { read, write: self.rng.bool(), truncate: false };
        let one = |run: &mut Self| CreateArgs {
            parent: run.any_parent(),
            name: run.any_name(),
            mode: run.any_mode(),
            exclusive: true,
            open,
            wish: Default::default(),
        };
        let files: Vec<_> = (0..self.rng.usize(..5)).map(|_| one(self)).collect();
        let change = self.change(client, who);
        self.begin();
        let made = insist!(self, s => async { s.create_many(&change, &files, nameless).await });
        let by = By { caller: &who.caller, now: self.span() };
        let create = |model: &mut Model| {
            let mut all = Vec::new();
            for (at, args) in files.iter().enumerate() {
                let id = made.as_ref().ok().and_then(|made| made[at].as_ref().ok());
                let id = id.map_or(InodeId(NO_INODE.0 - at as u64), |opened| opened.attr.inode);
                let how = (true, open.read, open.write, false);
                all.push(match nameless {
                    true => model.make_nameless(&by, args.parent, args.mode, id),
                    false => {
                        model.create(&by, args.parent, &args.name, args.mode, how, id).map(drop)
                    }
                });
            }
            Ok(all)
        };
        // Together they are within the limits, or none is made.
        let all = self.model.within(create);
        let expected = all.clone().unwrap_or_default();
        let all = all.map(drop);
        self.expect(format!("create many {files:?} {nameless} by {who:?}"), &made, all);
        for ((one, expected), args) in made.into_iter().flatten().zip(expected).zip(files) {
            self.expect(format!("one of many: {args:?}"), &one, expected);
            if let Ok(opened) = one {
                self.note_open(client, &opened, open.write);
            }
        }
    }

    /// Root closes files of a client, some with another mode, some with a name.
    async fn close_many(&mut self) {
        let client = self.any_client();
        let mut mine = self.files_of(client);
        mine.truncate(self.rng.usize(..4));
        let one = |run: &mut Self, at: usize| {
            let mode = run.rng.bool().then(|| run.any_mode());
            let link = (run.rng.u8(..3) == 0).then(|| (run.any_parent(), run.any_name()));
            let set = SetAttrArgs { mode, ..SetAttrArgs::default() };
            CloseArgs { report: run.report_of(at), set, link }
        };
        let files: Vec<_> = mine.iter().map(|at| one(self, *at)).collect();
        let change = self.change(client, &root());
        self.begin();
        let closed = insist!(self, s => async { s.close_many(&change, &files).await });
        if code_of(&closed) == Some(Code::QuotaExceeded) {
            assert!(files.iter().any(|file| file.link.is_some()), "{files:?}");
            return;
        }
        self.expect(format!("close many {files:?}"), &closed, Ok(()));
        let closed = closed.expect("checked");
        let by = By { caller: &root().caller, now: self.span() };
        for (attr, at) in closed.iter().zip(&mine) {
            if code_of(attr) == Some(Code::Busy) {
                continue;
            }
            let attr = match attr {
                Ok(attr) => attr.clone(),
                Err(_) => {
                    let inode = self.open[*at].inode;
                    let attr = insist!(self, s => async { s.get_attr(&root(), inode).await });
                    attr.expect("it is open")
                }
            };
            self.reported(*at, &attr, &by);
        }
        let numbers: Vec<_> = mine.iter().map(|at| self.open[*at].number).collect();
        let close = |model: &mut Model| {
            let mut all = Vec::new();
            for ((attr, args), number) in closed.iter().zip(&files).zip(numbers) {
                all.push(match code_of(attr) {
                    Some(Code::Busy) => Err(Code::Busy),
                    _ => model.close_as(&by, args, number),
                });
            }
            Ok(all)
        };
        let expected = self.model.within(close).expect("within quotas");
        let mut gone = Vec::new();
        for (((attr, args), expected), at) in closed.iter().zip(&files).zip(expected).zip(mine) {
            self.expect(format!("one of many: {args:?}"), attr, expected);
            gone.extend(attr.is_ok().then_some(at));
        }
        while let Some(at) = gone.pop() {
            let file = self.open.swap_remove(at);
            if file.write {
                self.gone.push((file.attr, self.world.env.wall()));
            }
        }
        self.end_closed();
    }

    async fn stat_many(&mut self, who: &Who) {
        let inodes: Vec<_> = (0..self.rng.usize(..4)).map(|_| self.any_inode()).collect();
        let names: Vec<_> = (0..self.rng.usize(..4)).map(|_| self.any_name()).collect();
        let parent = self.any_parent();
        let stats = insist!(self, s => async { s.stat_many(who, &inodes, (parent, &names)).await });
        let by = By { caller: &who.caller, now: self.span() };
        let expected = inodes.iter().map(|inode| self.model.node(*inode).map(|_| *inode));
        let names = names.iter().map(|name| self.model.lookup(&by, parent, name));
        let expected: Vec<_> = expected.chain(names).collect();
        let found = stats.expect("an answer").into_iter();
        let found: Vec<_> = found.map(|attr| code(attr.map(|attr| attr.inode))).collect();
        assert_eq!(found, expected, "{inodes:?} and of {parent}");
    }
}

impl Model {
    fn close_as(&mut self, by: &By<'_>, args: &CloseArgs, number: u64) -> Result<(), Code> {
        let inode = args.report.inode;
        if let Some(mode) = args.set.mode {
            self.chmod(by, inode, mode)?;
        }
        if let Some((parent, name)) = &args.link {
            self.link(by, inode, *parent, name)?;
        }
        self.close(number);
        Ok(())
    }
}
