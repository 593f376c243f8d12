// Package daemon runs the real edgepolicyd, built from this tree, in the gateway
// of a lab. Tests and the demo use it.
package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"edgepolicy.io/edgepolicyd/internal/lab"
)

// Daemon is one edgepolicyd with folders of its own, in a lab's gateway. It can
// be stopped and started again on the same folders.
type Daemon struct {
	Lab    *lab.Lab
	Folder string // everything is in here
	Dir    string // the policies
	State  string
	Config string // the configuration file
	Binary string

	cmd    *exec.Cmd
	exited chan struct{}
	log    Output
}

// Output gathers what the daemon writes.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

var build struct {
	once sync.Once
	path string
	err  error
}

// Build builds edgepolicyd once in a process and gives the path of the binary,
// which is the same for all processes of one checkout. EDGEPOLICYD names one that
// is built already.
func Build() (string, error) {
	build.once.Do(func() {
		if build.path = os.Getenv("EDGEPOLICYD"); build.path == "" {
			build.path, build.err = buildBinary()
		}
	})
	return build.path, build.err
}

func buildBinary() (string, error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	sum := sha256.Sum256(root)
	path := filepath.Join(os.TempDir(), fmt.Sprintf("edgepolicyd-tests-%x", sum[:4]))
	fresh := fmt.Sprintf("%s.%d", path, os.Getpid())
	cmd := exec.Command("go", "build", "-trimpath", "-o", fresh, "edgepolicy.io/edgepolicyd/cmd/edgepolicyd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build edgepolicyd: %w\n%s", err, out)
	}
	return path, os.Rename(fresh, path)
}

// New makes the folders of a daemon below folder. config is added to its
// configuration file.
func New(l *lab.Lab, folder, config string) (*Daemon, error) {
	binary, err := Build()
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Lab: l, Folder: folder, Binary: binary,
		Dir: filepath.Join(folder, "edgepolicy.d"), State: filepath.Join(folder, "state"), Config: filepath.Join(folder, "config.yaml"),
	}
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return nil, err
	}
	if !strings.Contains(config, "log:") { // and where journald is, it is not to be read here
		config = "log: {format: text}\n" + config
	}
	text := fmt.Sprintf("sources:\n  directory: {path: %s}\nstateDir: %s\nsocket: %s\n%s", d.Dir, d.State, filepath.Join(folder, "edgepolicyd.sock"), config)
	return d, os.WriteFile(d.Config, []byte(text), 0o644)
}

// readyTimeout is how long a start may take before it counts as failed.
const readyTimeout = 30 * time.Second

// Start starts the daemon and waits until it says, as it would to systemd, that
// it enforces.
func (d *Daemon) Start() error {
	path := filepath.Join(d.Folder, "notify.sock")
	os.Remove(path)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	d.cmd = exec.Command(d.Binary, "run", "--config", d.Config)
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.Lab.Gateway.Start(d.cmd); err != nil {
		notify.Close()
		return err
	}
	d.exited = make(chan struct{})
	go func() {
		d.cmd.Wait()
		notify.Close()
		close(d.exited)
	}()
	if err := notify.SetReadDeadline(time.Now().Add(readyTimeout)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			return fmt.Errorf("the daemon did not become ready: %w\n%s", err, d.Log())
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			go io.Copy(io.Discard, notify) // as systemd goes on listening
			return notify.SetReadDeadline(time.Time{})
		}
	}
}

// Log is what the daemon has written so far, over all its starts.
func (d *Daemon) Log() string { return d.log.String() }

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stop ends the daemon as systemd would and waits for it.
func (d *Daemon) Stop() error { return d.end(syscall.SIGTERM) }

// Kill ends the daemon with SIGKILL.
func (d *Daemon) Kill() error { return d.end(syscall.SIGKILL) }

func (d *Daemon) end(sig syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.exited:
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(fmt.Errorf("the daemon did not end\n%s", d.Log()), d.cmd.Process.Kill())
	}
}

// Write puts a file into the directory of policies as an editor does: a new
// file, renamed into place.
func (d *Daemon) Write(name, content string) error {
	tmp := filepath.Join(d.Dir, "."+name+".new")
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(d.Dir, name))
}

// Remove takes a file away.
func (d *Daemon) Remove(name string) error { return os.Remove(filepath.Join(d.Dir, name)) }

// Run runs a command of edgepolicyd in the gateway with the daemon's
// configuration. The error is that of starting it; code is its exit code.
func (d *Daemon) Run(args ...string) (stdout, stderr string, code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.Binary, append(args, "--config", d.Config)...)
	var out, errs Output
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := d.Lab.Gateway.Start(cmd); err != nil {
		return "", "", 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), errs.String(), exit.ExitCode(), nil
	}
	return out.String(), errs.String(), 0, err
}

// Reload has the daemon read the directory and returns when the kernel has it.
// A degraded daemon is no error.
func (d *Daemon) Reload() error {
	out, errs, code, err := d.Run("reload", "--timeout", "30s")
	if err == nil && code != 0 && code != 3 {
		err = fmt.Errorf("reload: exit code %d\n%s%s\n%s", code, out, errs, d.Log())
	}
	return err
}
