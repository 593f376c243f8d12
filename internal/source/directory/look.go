package directory

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

// stamp tells whether a file is still the one that was read. ctime can't be set
// by anyone, and changes with content, owner, mode and name.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
}

// scan looks at every name that is there or was.
func (s *Source) scan(now time.Time) {
	s.rewatch = true
	entries, err := os.ReadDir(s.path)
	if err != nil {
		s.unreadable(err)
		return
	}
	doubt := shared(s.path)
	s.dirty = s.dirty || s.err != nil || !slices.Equal(doubt, s.doubt)
	s.err, s.doubt = nil, doubt
	var first []string
	for _, e := range entries {
		if eligible(e.Name()) {
			s.pending[e.Name()] = now
			first = append(first, e.Name())
		}
	}
	if len(s.files) == 0 {
		s.loadAhead(first)
	}
	for name := range s.files {
		s.pending[name] = now
	}
}

// shared warns of a folder in which others than its owner may remove and rename
// files. What they put there is not read (trusted), but they can take policies
// away.
func shared(folder string) []manifest.Diagnostic {
	var st unix.Stat_t
	if unix.Stat(folder, &st) != nil || st.Mode&0o022 == 0 || st.Mode&unix.S_ISVTX != 0 {
		return nil
	}
	return []manifest.Diagnostic{{Severity: manifest.Warning, File: folder,
		Message: fmt.Sprintf("its mode is %04o: group or others may take policies away: chmod go-w", st.Mode&0o7777)}}
}

// unreadable notes that the directory itself can't be read, so that nothing is
// known to be gone.
func (s *Source) unreadable(err error) {
	s.dirty = s.dirty || s.err == nil || s.err.Error() != err.Error()
	s.err = err
	for _, f := range s.files {
		f.gone = time.Time{}
	}
}

// look brings what is known of a name up to date. If it can't tell yet, as the
// file is being written, it says how long to wait before looking again.
func (s *Source) look(name string, now time.Time) time.Duration {
	path := filepath.Join(s.path, name)
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if missing(err) {
		if _, linkErr := os.Lstat(path); missing(linkErr) {
			return s.lookGone(name, now)
		}
		err = errDangling
	}
	f := s.files[name]
	if f == nil {
		f = &file{}
		s.files[name], s.names = f, nil
	}
	f.gone = time.Time{}
	if err != nil {
		s.refuse(f, path, err)
		f.stamp = stamp{} // what made it fail may end without a trace in the stamp
		return 0
	}
	if stampOf(&st) == f.stamp {
		return 0
	}
	// A clock that was set back leaves changes in the future: those are old.
	age := now.Sub(time.Unix(st.Ctim.Unix()))
	if age >= 0 && age < s.quiet {
		return s.quiet - age
	}
	return s.read(f, path, stampOf(&st), now)
}

// missing says whether there is no such name; or no directory that could have it.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// lookGone forgets a file that is gone, but not at once: an editor may be
// about to put a new one in its place.
func (s *Source) lookGone(name string, now time.Time) time.Duration {
	f := s.files[name]
	if f == nil {
		return 0
	}
	fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.unreadable(&fs.PathError{Op: "open", Path: s.path, Err: err})
		return 0
	}
	unix.Close(fd)
	if f.gone.IsZero() {
		f.gone = now
	}
	if age := now.Sub(f.gone); age < s.quiet {
		return s.quiet - age
	}
	delete(s.files, name)
	s.names = nil
	s.dirty, s.rewatch = true, true
	return 0
}

var errDangling = errors.New("it is a symbolic link to nothing")

// errBusy says that a file is being written.
var errBusy = errors.New("another program has it open for writing")

const (
	busyWait  = 50 * time.Millisecond // before a file that is open for writing is looked at again
	busyLimit = 5 * time.Second       // after which it is reported
)

// read reads and decodes a file that has changed, unless that was done ahead and
// it is still the same.
func (s *Source) read(f *file, path string, seen stamp, now time.Time) time.Duration {
	l, ahead := s.ahead[path]
	if !ahead || stampOf(&l.st) != seen {
		l = load(path)
	}
	delete(s.ahead, path)
	st, err := l.st, l.err
	if errors.Is(err, errBusy) {
		if f.busy.IsZero() {
			f.busy = now
		}
		if now.Sub(f.busy) >= busyLimit {
			s.refuse(f, path, fmt.Errorf("%w: it is read when that ends", errBusy))
			return poll
		}
		return max(busyWait, s.quiet)
	}
	f.busy = time.Time{}
	f.stamp = stampOf(&st)
	if target := targetOf(path); target != f.target {
		f.target, s.rewatch = target, true
	}
	if err != nil {
		s.refuse(f, path, err)
		return 0
	}
	s.dirty = true
	f.take(l.content)
	return 0
}

// loaded is a file as it was read.
type loaded struct {
	st      unix.Stat_t
	err     error
	content manifest.File
}

// load reads and decodes a file.
func load(path string) loaded {
	data, st, err := readFile(path)
	if err != nil {
		return loaded{st: st, err: err}
	}
	c := manifest.Decode(Name, path, data)
	// Without the tree of YAML nodes, which is large.
	return loaded{st: st, content: manifest.File{Parsed: c.Parsed, Documents: c.Documents, Diagnostics: c.Diagnostics}}
}

// loadAhead reads the files of the first look on all processors: that is most of
// what a start has to do.
func (s *Source) loadAhead(names []string) {
	work := make(chan string)
	var wg sync.WaitGroup
	var mu sync.Mutex
	s.ahead = make(map[string]loaded, len(names))
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for name := range work {
				path := filepath.Join(s.path, name)
				l := load(path)
				mu.Lock()
				s.ahead[path] = l
				mu.Unlock()
			}
		})
	}
	for _, name := range names {
		work <- name
	}
	close(work)
	wg.Wait()
}

// refuse leaves a file's last content in force and says why.
func (s *Source) refuse(f *file, path string, err error) {
	s.dirty = true
	f.fail([]manifest.Diagnostic{notRead(path, err)})
}

// notRead says why a file was not read.
func notRead(path string, err error) manifest.Diagnostic {
	// The path is in every error of package os; once is enough.
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return manifest.Diagnostic{Severity: manifest.Error, File: path, Message: "not read: " + err.Error()}
}

// readFile reads a whole file if it is one that may be believed and nobody is
// writing to it (errBusy). The Stat_t is that of what was read or refused, or
// zero if that is not known.
func readFile(path string) ([]byte, unix.Stat_t, error) {
	f, st, err := open(path, func(st *unix.Stat_t) error { return cmp.Or(regular(st), trusted(st, os.Geteuid()), small(st)) })
	if err != nil {
		return nil, st, err
	}
	defer f.Close()
	// The kernel gives a read lease only if nobody has the file open for writing
	// (fcntl(2), F_SETLEASE). File systems without leases refuse in other ways:
	// there the time without a change has to do.
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if errors.Is(err, unix.EAGAIN) {
		return nil, st, errBusy
	}
	if err == nil {
		// A writer who opens the file now waits until it is closed below.
		defer unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	before := stampOf(&st)
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, unix.Stat_t{}, err
	}
	if stampOf(&st) != before || int64(len(data)) != st.Size {
		return nil, st, errBusy
	}
	return data, st, nil
}

// open opens a file that objection has nothing against. It does not wait for the
// other end of a FIFO, and opens no device. The Stat_t is that of what was opened
// or refused, or zero if that is not known.
func open(path string, objection func(*unix.Stat_t) error) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, unix.Stat_t{}, err
	}
	if err := objection(&st); err != nil {
		return nil, st, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, unix.Stat_t{}, err
	}
	if err := objection(&st); err != nil {
		f.Close()
		return nil, st, err
	}
	return f, st, nil
}

// regular says why what a name stands for has nothing to be read.
func regular(st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return errors.New("it is a directory, and those are not looked into")
	}
	return errors.New("it is no regular file")
}

// trusted says why a daemon that runs as user must not believe a file.
func trusted(st *unix.Stat_t, user int) error {
	switch {
	case st.Uid != 0 && int(st.Uid) != user:
		return fmt.Errorf("its owner is user %d, and must be root or the daemon's user: chown root", st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("its mode is %04o, and nobody but the owner may be able to write it: chmod go-w", st.Mode&0o7777)
	}
	return nil
}

func small(st *unix.Stat_t) error {
	if st.Size > maxSize {
		return fmt.Errorf("it has %d bytes, and %d are the most", st.Size, maxSize)
	}
	return nil
}

// targetOf gives the directory that a symbolic link's file is in, or "" for
// what is no link.
func targetOf(path string) string {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSymlink {
		return ""
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	return filepath.Dir(target)
}
