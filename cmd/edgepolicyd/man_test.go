package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"edgepolicy.io/edgepolicyd/internal/config"
)

// TestManPages: the pages in packaging/man say what the commands and the configuration
// do. They are made here, so that the program need not carry what makes them.
func TestManPages(t *testing.T) {
	for name, want := range map[string]string{
		"edgepolicyd.8":      commandPage((&app{}).root()),
		"edgepolicyd.conf.5": configurationPage(),
	} {
		upToDate(t, "../../packaging/man/"+name, want)
	}
}

const manHead = `.\" Written by: go test ./cmd/edgepolicyd -run ManPages -update
.TH %s %d "" "edgepolicyd" "%s"
.SH NAME
%s \- %s
`

func commandPage(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, manHead, "EDGEPOLICYD", 8, "System administration", "edgepolicyd", roff(lowerFirst(root.Short)))
	b.WriteString(".SH SYNOPSIS\n.B edgepolicyd\n.I COMMAND\n.RI [ FLAGS ]\n.RI [ ARGUMENTS ]\n")
	b.WriteString(".SH DESCRIPTION\n" + paragraphs(root.Long))
	b.WriteString(".SH COMMANDS\n")
	for _, c := range root.Commands() {
		if c.Hidden || c.Name() == "help" {
			continue
		}
		if c.Name() == "completion" {
			b.WriteString(".SS completion SHELL\nWrite the completion script of a shell: bash, fish, powershell or zsh. The packages\ninstall those of bash, fish and zsh.\n")
			continue
		}
		fmt.Fprintf(&b, ".SS %s\n", roff(strings.TrimPrefix(c.UseLine(), "edgepolicyd ")))
		text := c.Long
		if text == "" {
			text = c.Short + "."
		}
		b.WriteString(paragraphs(text))
		b.WriteString(flags(c.LocalNonPersistentFlags()))
	}
	b.WriteString(".SH FLAGS OF ALL COMMANDS\n" + flags(root.PersistentFlags()))
	b.WriteString(`.SH FILES
.TP
.I /etc/edgepolicy.d
NetworkPolicies, and where nothing else tells of them Pods and Namespaces.
.TP
.I /etc/edgepolicyd/config.yaml
The configuration.
.TP
.I /var/lib/edgepolicyd
What was in force last, for the next start.
.TP
.I /run/edgepolicyd/edgepolicyd.sock
Where the daemon answers the other commands.
.TP
.I /usr/share/doc/edgepolicyd/examples
Policies to begin with.
.TP
.I /usr/share/doc/edgepolicyd/presets
Configurations for kinds of gateways.
.SH EXAMPLES
Put a policy into force, and see who reaches whom:
.PP
.nf
    cp /usr/share/doc/edgepolicyd/examples/deny\-all.yaml /etc/edgepolicy.d/
    edgepolicyd status
    edgepolicyd matrix \-\-port 443 /etc/edgepolicy.d
.fi
.PP
Stop enforcing in an emergency, also over a reboot:
.PP
.nf
    systemctl disable \-\-now edgepolicyd edgepolicyd\-restore && edgepolicyd flush
.fi
.SH SEE ALSO
.BR edgepolicyd.conf (5),
.BR edgepolicyd.policy (7),
.BR journalctl (1),
.BR nft (8)
`)
	return b.String()
}

func configurationPage() string {
	var b strings.Builder
	fmt.Fprintf(&b, manHead, "EDGEPOLICYD.CONF", 5, "File formats", "edgepolicyd.conf", "configuration of edgepolicyd")
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.I %s\n", config.DefaultPath)
	b.WriteString(`.SH DESCRIPTION
The file is YAML. It need not be there, every key is optional, and an unknown key is
an error at its line. A dot in the names below is a level: log.level is the key level
in the mapping log. The file that the package installs holds all keys with their
defaults.
.PP
The configuration is read at the start only:
.PP
.nf
    edgepolicyd check \-\-config /etc/edgepolicyd/config.yaml
    systemctl restart edgepolicyd
.fi
.PP
The rules stay in force meanwhile.
.SH KEYS
`)
	for _, e := range config.Reference() {
		fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(e.Key), roff(wrapped(e.Meaning)))
		if e.Default != "" {
			fmt.Fprintf(&b, ".br\nDefault: %s\n", roff(e.Default))
		}
	}
	b.WriteString(".SH SEE ALSO\n.BR edgepolicyd (8),\n.BR edgepolicyd.policy (7)\n")
	return b.String()
}

// paragraphs writes help text: what is indented stays as it is.
func paragraphs(text string) string {
	var b strings.Builder
	for i, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(p, " ") {
			p = ".nf\n" + roff(p) + "\n.fi"
		} else {
			p = roff(p)
		}
		b.WriteString(p + "\n")
	}
	return b.String()
}

func flags(set *pflag.FlagSet) string {
	var b strings.Builder
	set.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		kind, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(&b, ".TP\n.BR %s", roffWord(name))
		if kind != "" {
			fmt.Fprintf(&b, " \" \\fI%s\\fR\"", roff(kind))
		}
		if !slices.Contains([]string{"", "false", "[]", "0"}, f.DefValue) {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(&b, "\n%s\n", roff(wrapped(usage)))
	})
	return b.String()
}

// roff escapes text: hyphens as they are typed, and no line that is a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "~", `\(ti`, "^", `\(ha`, "`", `\(ga`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// roffWord is one argument of a request.
func roffWord(text string) string { return `"` + strings.ReplaceAll(roff(text), `"`, `\(dq`) + `"` }

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
