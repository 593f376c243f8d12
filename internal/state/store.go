package state

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The files in the state directory. The others are made from these names, so
// that whatever happens only a handful of files is ever left behind.
const (
	fileName    = "state"
	tempName    = "state.tmp"       // being written; left by a crash, overwritten by the next Save
	newerName   = "state.newer"     // was state, of a later daemon, when this one saved its own
	damagedName = "state.damaged-1" // the last damaged file
	olderName   = "state.damaged-2" // the one before
)

// Store keeps the state in a directory. It is used by one goroutine of one
// process at a time.
type Store struct {
	dir   string
	log   *slog.Logger
	known bool              // sum is that of the file on disk
	sum   [sha256.Size]byte // of the content that was loaded or saved last
	newer bool              // the file on disk is that of a later daemon
}

// New gives the store in a directory, which Save makes if need be.
func New(dir string, log *slog.Logger) *Store {
	return &Store{dir: dir, log: log}
}

// Path is the file that holds the state.
func (s *Store) Path() string { return filepath.Join(s.dir, fileName) }

// Load reads what was saved last. No file is an empty Saved without an error,
// and no error is a reason not to go on: Saved is empty then.
//
// A damaged file is renamed to state.damaged-1 (the one that has that name
// already to state.damaged-2), and the error is ErrDamaged. A file of a later
// daemon is left alone until Save, and the error is ErrNewer.
func (s *Store) Load() (Saved, error) {
	path := s.Path()
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Saved{}, nil
	}
	var saved Saved
	if err == nil {
		saved, err = decode(data)
	}
	switch {
	case err == nil:
		s.known, s.sum = true, sha256.Sum256(data)
		return saved, nil
	case errors.Is(err, ErrDamaged):
		return Saved{}, errors.Join(fmt.Errorf("state file %s: %w", path, err), s.setAside())
	case errors.Is(err, ErrNewer):
		s.newer = true
	}
	return Saved{}, fmt.Errorf("state file %s: %w", path, err)
}

// read gives the content of a regular file of at most maxSize bytes.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: it is no regular file", ErrDamaged)
	case info.Size() > maxSize:
		return nil, fmt.Errorf("%w: it has %d bytes", ErrDamaged, info.Size())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, err
	}
	return data, nil
}

// setAside keeps the damaged file for whoever wants to know what happened to
// it, and the one before.
func (s *Store) setAside() error {
	path := func(name string) string { return filepath.Join(s.dir, name) }
	if err := os.Rename(path(damagedName), path(olderName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set damaged state aside: %w", err)
	}
	if err := os.Rename(path(fileName), path(damagedName)); err != nil {
		return fmt.Errorf("set damaged state aside: %w", err)
	}
	s.log.Warn("damaged state file set aside", "file", path(damagedName))
	return nil
}

// Save writes the state if it differs from what was loaded or saved last, and
// says whether it did: flash wears out. When it returns true the state is on the
// disk, not only in the kernel's memory. A file of a later daemon is kept as
// state.newer.
func (s *Store) Save(state State) (bool, error) {
	data, err := encode(state)
	if err != nil {
		return false, err
	}
	if len(data) > maxSize {
		return false, fmt.Errorf("save state: it has %d bytes, %d are the most", len(data), maxSize)
	}
	sum := sha256.Sum256(data)
	if s.known && s.sum == sum {
		if _, err := os.Lstat(filepath.Join(s.dir, fileName)); err == nil {
			return false, nil
		}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return false, fmt.Errorf("save state: %w", err)
	}
	if s.newer {
		if err := s.keepNewer(); err != nil {
			return false, err
		}
	}
	s.known = false // until it is known what is on the disk
	if err := s.replace(data); err != nil {
		return false, fmt.Errorf("save state: %w", err)
	}
	s.known, s.sum = true, sum
	return true, nil
}

// keepNewer gives the later daemon's file a second name, so that there is never
// a moment without a state file.
func (s *Store) keepNewer() error {
	path, aside := filepath.Join(s.dir, fileName), filepath.Join(s.dir, newerName)
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep newer state: %w", err)
	}
	if err := os.Link(path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep newer state: %w", err)
	}
	s.newer = false
	s.log.Warn("state file of a later version kept aside", "file", aside)
	return nil
}

// replace writes the file beside its place, has it on the disk, renames it, and
// has the new name on the disk.
func (s *Store) replace(data []byte) (err error) {
	temp := filepath.Join(s.dir, tempName)
	// Whatever has the name is not ours to write into: a file keeps its owner and
	// mode, a symbolic link its target.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(temp, filepath.Join(s.dir, fileName)); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
