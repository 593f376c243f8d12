package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/config"
)

// TestConfigurationDocument: docs/configuration.md says what the program knows.
func TestConfigurationDocument(t *testing.T) {
	upToDate(t, "../../docs/configuration.md", configurationDocument())
}

// upToDate says that a document is what is made here, or with -update makes it so.
func upToDate(t *testing.T, file, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is out of date: go test ./cmd/edgepolicyd -run %s -update", file, t.Name())
	}
}

func configurationDocument() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Configuration

<!-- Written by: go test ./cmd/edgepolicyd -run Document -update -->

The daemon reads %[1]s. It need not be there, every key is
optional, and an unknown key is an error at its line. All commands read it, so
that they find the daemon; %[2]s names another file.
[configs/config.yaml](../configs/config.yaml) holds all keys with their defaults.

Check a file before the daemon sees it:

    edgepolicyd check --config /etc/edgepolicyd/config.yaml

The configuration is read at the start only; %[3]s reads the
policies anew, not this.

`, "`"+config.DefaultPath+"`", "`--config FILE`", "`edgepolicyd reload`")
	for _, e := range config.Reference() {
		fmt.Fprintf(&b, "## %s\n\nDefault: `%s`\n\n%s\n\n", e.Key, e.Default, wrapped(e.Meaning))
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// wrapped breaks lines at 80 columns.
func wrapped(text string) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		switch {
		case column == 0:
		case column+1+len(word) > 80:
			b.WriteString("\n")
			column = 0
		default:
			b.WriteString(" ")
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}
