// Package audit is the daemon's log: one slog.Handler that writes to journald or to
// standard error, and the events of the audit log with their names and fields.
//
// What always holds: to log never waits, neither for journald nor for whoever reads
// standard error; what is lost is counted and told. Nothing that comes from a file
// or the network can make a line or a field of its own.
package audit

import (
	"context"
	"log/slog"
	"strings"
)

// LevelNotice is the level of what changes what is enforced: between info, which log
// shippers drop, and warn. It is written as NOTICE, and is journald's priority 5.
const LevelNotice = slog.Level(2)

// Event is a kind of message with a stable name. See Events.
type Event struct {
	Name string // in kebab-case; EDGEPOLICY_EVENT
	ID   string // 128 bits in hex, for journald's MESSAGE_ID
	// Level is the level of all messages of the event.
	Level   slog.Level
	Fields  []string // keys of the attributes that its messages can have
	Meaning string   // a line, for the table in the documentation
	Subject string   // of the entry in the journal's catalog; @NAME@ is the field's value
	Text    string   // of that entry: what it means, and what to do
}

// Log writes a message of the event. The message must say everything by itself: some
// of those who read logs keep nothing else. The attributes' keys are those of
// e.Fields.
func (e *Event) Log(log *slog.Logger, message string, attrs ...slog.Attr) {
	log.LogAttrs(context.Background(), e.Level, message, append([]slog.Attr{slog.Any(KeyEvent, e)}, attrs...)...)
}

// List is the value of an attribute that has several: in the journal a field for each,
// in text and JSON one with commas between.
type List []string

// MarshalText joins the values.
func (l List) MarshalText() ([]byte, error) { return []byte(strings.Join(l, ",")), nil }

// MarshalText gives the event's name: what text and JSON show.
func (e *Event) MarshalText() ([]byte, error) { return []byte(e.Name), nil }
