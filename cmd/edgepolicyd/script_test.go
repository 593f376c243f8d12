package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"edgepolicyd": main})
}

// TestScripts runs the commands as a person would. What touches the kernel does
// so in a network namespace of its own (unshare -n).
func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes network namespaces")
	}
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: writeConfig,
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"await": await, "exitcode": exitcode},

		RequireExplicitExec: true,
		UpdateScripts:       *update,
	})
}

// writeConfig puts a daemon's configuration, with all its paths in $WORK, into
// $WORK/config.yaml.
func writeConfig(e *testscript.Env) error {
	text := fmt.Sprintf("sources:\n  directory: {path: %[1]s/policies}\nstateDir: %[1]s/state\nsocket: %[1]s/sock\n", e.WorkDir)
	return os.WriteFile(filepath.Join(e.WorkDir, "config.yaml"), []byte(text), 0o644)
}

// await waits until somebody answers on a unix socket.
func await(ts *testscript.TestScript, _ bool, args []string) {
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var c net.Conn
		if c, err = net.Dial("unix", ts.MkAbs(args[0])); err == nil {
			c.Close()
			return
		}
	}
	ts.Fatalf("nobody serves %s: %v", args[0], err)
}

// exitcode runs a program that must end with a given exit code.
func exitcode(ts *testscript.TestScript, _ bool, args []string) {
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if want, err := strconv.Atoi(args[0]); err != nil || code != want {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}
