package cni

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

const (
	maxFiles = 4096    // names in a folder
	maxSize  = 1 << 20 // bytes of a file
)

// retries are the times after which a file that can't be taken is read again.
// libcni writes its results in place, in one go: what is half there is whole within
// microseconds, or when its writer gets a processor again. After that it takes an
// event, or the file's being another at the next look.
var retries = [...]time.Duration{time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond, 16 * time.Millisecond}

// racy is how old a change must be for the file's times to tell it from the
// next: the kernel's clock for files ticks every 1 to 10 ms.
const racy = 20 * time.Millisecond

// folder is what is known of the files of a folder, T being what one file says.
type folder[T any] struct {
	path     string
	eligible func(name string) bool // is a file to be read
	private  bool                   // only what none but root and the daemon can write is believed
	parse    func(data []byte, st *unix.Stat_t) (T, error)

	files   map[string]*file[T]  // by name
	pending map[string]time.Time // names to look at, and when
	all     bool                 // everything is to be looked at
	dirty   bool                 // something here changed; whoever looks at it resets this
	present bool                 // the folder is there
	err     error                // the folder can't be read, and files are those that were known
	doubt   string               // what is wrong with the folder's owner and mode
}

// file is what is known of one file.
type file[T any] struct {
	stamp   stamp // of what was read last; zero: read it again
	content T     // what it said when it last was whole
	whole   bool  // content is something
	tries   int   // since it last was whole
	err     error // why it is not taken as it is; nil while it is tried
}

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

func newFolder[T any](path string, eligible func(string) bool, private bool, parse func([]byte, *unix.Stat_t) (T, error)) folder[T] {
	return folder[T]{path: path, eligible: eligible, private: private, parse: parse,
		files: map[string]*file[T]{}, pending: map[string]time.Time{}}
}

// work looks at what is due and says when there is more to do (zero: no such time).
func (d *folder[T]) work(now time.Time) (next time.Time) {
	if d.all {
		d.all = false
		d.scan(now)
	}
	for name, due := range d.pending {
		if !due.After(now) {
			delete(d.pending, name)
			wait := d.look(name)
			if wait == 0 {
				continue
			}
			due = now.Add(wait)
			d.pending[name] = due
		}
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	if d.all {
		next = now
	}
	return next
}

// scan makes every name that is there, or was, one to look at. A folder that
// does not exist has no files; of one that can't be read nothing is known to be gone.
func (d *folder[T]) scan(now time.Time) {
	names, err := list(d.path)
	present, doubt := true, ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		present, err = false, nil
	case err == nil && d.private:
		doubt = doubtful(d.path)
	}
	if present != d.present || doubt != d.doubt || fmt.Sprint(err) != fmt.Sprint(d.err) {
		d.present, d.doubt, d.err, d.dirty = present, doubt, err, true
	}
	if err != nil && names == nil {
		return
	}
	for _, name := range names {
		if d.eligible(name) {
			d.pending[name] = now
		}
	}
	for name := range d.files {
		d.pending[name] = now
	}
}

// list names what is in a folder. Of one that holds too much it names a part, with
// an error.
func list(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxFiles + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > maxFiles {
		return names[:maxFiles], fmt.Errorf("%s holds more than %d files, the most that are read: remove those of containers that are gone", path, maxFiles)
	}
	return names, nil
}

// doubtful says what is wrong with a folder in which others than its owner may
// remove and rename files. What they put there is not read (trusted), but they
// can take pods away.
func doubtful(path string) string {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case err != nil:
		return ""
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Sprintf("its owner is user %d, who may take pods away: chown root", st.Uid)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		return fmt.Sprintf("its mode is %04o: group or others may take pods away: chmod go-w", st.Mode&0o7777)
	}
	return ""
}

// look brings what is known of a name up to date. A file that can't be taken now
// keeps what it said before, and is to be looked at again after the time that is
// given; 0 if it was tried often enough.
func (d *folder[T]) look(name string) time.Duration {
	path := filepath.Join(d.path, name)
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		d.forget(name)
		return 0
	case errors.Is(err, unix.ENOTDIR): // the folder is none any more: scan says so
		return 0
	}
	f := d.files[name]
	if f == nil {
		if len(d.files) == maxFiles {
			d.all = d.all || d.err == nil // to say so
			return 0
		}
		f = &file[T]{}
		d.files[name] = f
	}
	if err == nil && stampOf(&st) == f.stamp {
		return 0
	}
	data, st, err := readFile(path, d.private)
	f.stamp = stamp{} // an error that has no stamp may end without a trace in it
	// A clock that was set back leaves changes in the future: the next is told from those.
	if age := time.Since(time.Unix(st.Ctim.Unix())); age < 0 || age >= racy {
		f.stamp = stampOf(&st)
	}
	var content T
	if err == nil {
		content, err = d.parse(data, &st)
	}
	if err != nil {
		return d.fail(f, err)
	}
	if f.err != nil || !f.whole || !reflect.DeepEqual(content, f.content) {
		d.dirty = true
		f.content, f.whole, f.err = content, true, nil
	}
	f.tries = 0
	return 0
}

// fail notes that a file can't be taken as it is.
func (d *folder[T]) fail(f *file[T], err error) time.Duration {
	if f.tries < len(retries) {
		f.stamp = stamp{}
		f.tries++
		return retries[f.tries-1]
	}
	err = bare(err)
	if f.err == nil || f.err.Error() != err.Error() {
		f.err, d.dirty = err, true
	}
	return 0
}

func (d *folder[T]) forget(name string) {
	if f := d.files[name]; f != nil {
		delete(d.files, name)
		d.dirty = true
	}
}

// readFile reads a whole file, if it is a regular one that may be believed. The
// Stat_t is that of what was read or refused, or zero if that is not known.
func readFile(path string, private bool) ([]byte, unix.Stat_t, error) {
	objection := func(st *unix.Stat_t) error {
		if private {
			return cmp.Or(regular(st), trusted(st, os.Geteuid()), small(st))
		}
		return cmp.Or(regular(st), small(st))
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, unix.Stat_t{}, err
	}
	if err := objection(&st); err != nil {
		return nil, st, err // opening a device may do things
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, unix.Stat_t{}, err
	}
	defer f.Close()
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, unix.Stat_t{}, err
	}
	if err := objection(&st); err != nil {
		return nil, st, err
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
		return nil, unix.Stat_t{}, errors.New("it changed while it was read")
	}
	return data, st, nil
}

func regular(st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("it is no regular file")
	}
	return nil
}

// trusted says why a daemon that runs as user must not believe a file: whoever can
// write here dictates who is who.
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

// bare is an error of package os without the path, which is told beside it.
func bare(err error) error {
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// notRead says why a file is not taken as it is.
func notRead(severity manifest.Severity, path string, err error) manifest.Diagnostic {
	return manifest.Diagnostic{Severity: severity, File: path, Message: "not read: " + bare(err).Error()}
}
