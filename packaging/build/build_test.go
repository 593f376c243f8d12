package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestVersions: dpkg and rpm order versions as they were made.
func TestVersions(t *testing.T) {
	made := []string{"0.9.0", "1.0.0-alpha.1", "1.0.0-rc.1", "1.0.0-rc.2", "1.0.0-rc.2-4-gabcdef1", "v1.0.0", "1.0.0-3-gabcdef1-dirty", "1.0.1"}
	for i := range made[1:] {
		a, b := packageVersion(made[i]), packageVersion(made[i+1])
		if err := exec.Command("dpkg", "--compare-versions", a+"-1", "lt", b+"-1").Run(); err != nil {
			t.Errorf("dpkg takes %s for no older than %s: %v", a, b, err)
		}
		out, err := exec.Command("rpm", "--eval", "%{lua: print(rpm.vercmp('"+a+"', '"+b+"'))}").Output()
		if err != nil || strings.TrimSpace(string(out)) != "-1" {
			t.Errorf("rpm takes %s for no older than %s: %s, %v", a, b, out, err)
		}
	}
}

const sample = `# Changelog

Words.

## [Unreleased]

### Added

- One thing that is so long
  that it has two lines.

### Fixed

- Another.

## [1.1.0] - 2026-02-03

### Changed

- A third.
`

var now = time.Unix(1700000000, 0).UTC()

func TestChangelog(t *testing.T) {
	for _, c := range []struct{ name, text, version, want string }{
		{"a released version and what came after", sample, "1.1.0+3.gabc", "1.1.0+3.gabc-1: Added: One thing that is so long that it has two lines.; Fixed: Another.|1.1.0-1: Changed: A third."},
		{"the release", strings.Replace(sample, sample[strings.Index(sample, "### Added"):strings.Index(sample, "## [1.1.0]")], "", 1), "1.1.0", "1.1.0-1: Changed: A third."},
		{"without a section for what is not released", sample[strings.Index(sample, "## [1.1.0]"):], "1.1.1", "1.1.1-1: Nothing that a user notices.|1.1.0-1: Changed: A third."},
	} {
		list, err := parseChangelog(c.text, c.version, now)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var got []string
		for _, r := range list {
			got = append(got, r.version+": "+strings.Join(r.changes, "; "))
		}
		if strings.Join(got, "|") != c.want {
			t.Errorf("%s: got\n%q, want\n%q", c.name, strings.Join(got, "|"), c.want)
		}
	}
	for _, text := range []string{"", "## 1.0.0\n", "## [1.0.0] - yesterday\n", "## [1.0.0]\n"} {
		if _, err := parseChangelog(text, "1.0.0", now); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestDebianChangelog(t *testing.T) {
	got := debianChangelog([]release{{version: "1.0.0-1", date: now, changes: []string{strings.Repeat("words ", 20), "B"}}})
	want := `edgepolicyd (1.0.0-1) unstable; urgency=medium

  * words words words words words words words words words words words words
    words words words words words words words words
  * B

 -- edgepolicyd maintainers <maintainers@edgepolicy.io>  Tue, 14 Nov 2023 22:13:20 +0000
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestLicenceNames(t *testing.T) {
	for text, want := range map[string][]string{
		"Apache License\nVersion 2.0":                                                            {"Apache-2.0"},
		"Permission is hereby granted,\nfree of charge":                                          {"Expat"},
		"Redistribution and use in source and binary forms":                                      {"BSD-2-Clause"},
		"Redistribution and use in source and binary forms. Neither the name":                    {"BSD-3-Clause"},
		"Apache License. Redistribution and use in source and binary forms. * Neither the name ": {"Apache-2.0", "BSD-3-Clause"},
		"All rights reserved.":                                                                   nil, // nobody may pass it on
	} {
		if got := licenceNames(text); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if got := copyrights("Copyright (c) 2011, A\n// Copyright © 2012 B\nCopyright [yyyy] [name]\ncopyright notice\n"); !slices.Equal(got, []string{"2011, A", "2012 B"}) {
		t.Errorf("copyrights: %q", got)
	}
}
