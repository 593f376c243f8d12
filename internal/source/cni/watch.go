package cni

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// watch is a directory to be watched.
type watch struct {
	dir      string
	only     string // the one name in it that matters; "" for all
	of       string // path of the folder that it is watched for, as configured
	dev, ino uint64 // which directory that is now
}

// watcher hears of changes in a set of directories. It knows them by what they
// were when it was made: when they may have been replaced it is made anew.
type watcher struct {
	log     *slog.Logger
	fs      *fsnotify.Watcher // nil: the kernel does not tell
	watches []watch
	stale   bool // what is watched may not be there any more
	deaf    bool // that the kernel does not tell has been logged
}

// backlog is how many events are held while one is worked on.
const backlog = 64

// watches says what to watch: the two folders, and their names in their parents,
// so that their being made or replaced is heard.
func (s *Source) watches() []watch {
	var all []watch
	for _, path := range []string{s.results.path, s.configs.path} {
		all = append(all, nameOf(path, path))
		if dir, err := filepath.EvalSymlinks(path); err == nil {
			all = append(all, watch{dir: dir, of: path})
		} else if target, err := os.Readlink(path); err == nil { // a link to what is not there yet
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(path), target)
			}
			all = append(all, nameOf(target, path))
		}
	}
	for i := range all {
		var st unix.Stat_t
		if unix.Stat(all[i].dir, &st) == nil {
			all[i].dev, all[i].ino = uint64(st.Dev), st.Ino
		}
	}
	return all
}

// nameOf watches for a path: its name in its parent, or as much of the way there
// as there is.
func nameOf(path, of string) watch {
	parent, name := filepath.Dir(path), filepath.Base(path)
	real, err := filepath.EvalSymlinks(parent)
	for ; err != nil && parent != filepath.Dir(parent); real, err = filepath.EvalSymlinks(parent) {
		parent, name = filepath.Dir(parent), filepath.Base(parent)
	}
	return watch{dir: real, only: name, of: of}
}

// update makes the watcher anew if it does not watch what it should, and says
// whether it did.
func (w *watcher) update(want []watch) bool {
	if !w.stale && w.fs != nil && slices.Equal(want, w.watches) {
		return false
	}
	w.close()
	w.stale, w.watches = false, want
	fs, err := fsnotify.NewBufferedWatcher(backlog)
	if err != nil {
		w.unheard("", err)
		return false
	}
	for _, x := range want {
		// One that went away just now is heard of by the watch on its parent.
		if err := fs.Add(x.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			w.unheard(x.dir, err)
			fs.Close()
			return false
		}
	}
	w.fs, w.deaf = fs, false
	return true
}

// unheard says that changes are not heard of, once.
func (w *watcher) unheard(dir string, err error) {
	if !w.deaf {
		w.log.Warn("the CNI folders are not watched but looked at every second", "directory", dir, "err", err)
	}
	w.deaf = true
}

func (w *watcher) close() {
	if w.fs != nil {
		w.fs.Close()
		w.fs = nil
	}
}

// interval is how often to look although nothing was heard.
func (w *watcher) interval() time.Duration {
	if w.fs == nil {
		return poll
	}
	return rescan
}

func (w *watcher) events() <-chan fsnotify.Event {
	if w.fs == nil {
		return nil
	}
	return w.fs.Events
}

func (w *watcher) errors() <-chan error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Errors
}

// note remembers what an event, and those that wait behind it, say is to be looked
// at. There is no waiting for quiet: what is read too early is read again.
func (s *Source) note(w *watcher, event fsnotify.Event, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for range backlog {
		if !ok {
			w.stale, s.results.all, s.configs.all = true, true, true
			return
		}
		s.results.note(w, event.Name, now)
		s.configs.note(w, event.Name, now)
		select {
		case event, ok = <-w.events():
		default:
			return
		}
	}
}

// note remembers what a path that something happened to means for the folder.
func (d *folder[T]) note(w *watcher, path string, now time.Time) {
	dir, name := filepath.Dir(path), filepath.Base(path)
	for _, x := range w.watches {
		switch {
		case x.of != d.path:
		case x.dir == path && x.only == "", x.dir == dir && x.only == name: // the folder itself
			d.all, w.stale = true, true
		case x.dir == dir && x.only == "" && d.eligible(name):
			d.pending[name] = now
		case x.dir == path: // the parent, or what there is of the way
			w.stale = true
		}
	}
}
