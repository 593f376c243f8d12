package directory

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watch is a directory to be watched.
type watch struct {
	dir  string
	only string // the one name in it that matters; "" for all
	main bool   // it is the source's own directory
}

// watcher hears of changes in a set of directories. It knows them by what they
// were when it was made: when they may have been replaced it is made anew.
type watcher struct {
	log     *slog.Logger
	fs      *fsnotify.Watcher // nil: the kernel does not tell
	watches []watch
	stale   bool // what is watched may not be there any more
}

// watches says what to watch: the directory, its own name in its parent, so that
// its being replaced or made is heard, and the directories that links lead to.
func (s *Source) watches() []watch {
	list := []watch{nameOf(s.path)}
	if dir, err := filepath.EvalSymlinks(s.path); err == nil {
		list = append(list, watch{dir: dir, main: true})
		for _, f := range s.files {
			if f.target != "" && f.target != dir {
				list = append(list, watch{dir: f.target})
			}
		}
	} else if target, err := os.Readlink(s.path); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(s.path), target)
		}
		list = append(list, nameOf(target)) // a link to what is not there yet
	}
	slices.SortFunc(list, func(a, b watch) int { return strings.Compare(a.dir+"\x00"+a.only, b.dir+"\x00"+b.only) })
	return slices.Compact(list)
}

// nameOf watches for a path: its name in its parent, or as much of the way there
// as there is.
func nameOf(path string) watch {
	parent, name := filepath.Dir(path), filepath.Base(path)
	real, err := filepath.EvalSymlinks(parent)
	for ; err != nil && parent != filepath.Dir(parent); real, err = filepath.EvalSymlinks(parent) {
		parent, name = filepath.Dir(parent), filepath.Base(parent)
	}
	return watch{dir: real, only: name}
}

// update makes the watcher anew if it does not watch what it should, and says
// whether it did.
func (w *watcher) update(want []watch) bool {
	if !w.stale && w.fs != nil && slices.Equal(want, w.watches) {
		return false
	}
	w.close()
	w.stale, w.watches = false, want
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("the directory is not watched but looked at every second", "err", err)
		return false
	}
	for _, dir := range want {
		// One that went away just now is heard of by the watch on its parent.
		if err := fs.Add(dir.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			w.log.Warn("the directory is not watched but looked at every second", "directory", dir.dir, "err", err)
			fs.Close()
			return false
		}
	}
	w.fs = fs
	return true
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

// note remembers what an event says is to be looked at, when it is quiet.
func (s *Source) note(w *watcher, event fsnotify.Event, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := time.Now().Add(s.quiet)
	all := !ok
	dir, name := filepath.Dir(event.Name), filepath.Base(event.Name)
	for _, x := range w.watches {
		switch {
		case x.dir == event.Name, x.dir == dir && x.only == name: // the directory itself
			all, w.stale = true, true
		case x.dir != dir || x.only != "":
		case x.main && eligible(name):
			s.pending[name] = due
		case !x.main || s.linked():
			all = true // ..data, or a file that a link leads to
		}
	}
	if !ok {
		w.stale = true
	}
	if all && s.full.IsZero() {
		s.full = due
	}
}

// linked says whether any file is a symbolic link.
func (s *Source) linked() bool {
	for _, f := range s.files {
		if f.target != "" {
			return true
		}
	}
	return false
}
