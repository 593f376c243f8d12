package audit

import "log/slog"

// The events. Names and IDs never change: people search for them, and what they
// send elsewhere is kept for years.
var (
	Start = &Event{
		Name: "start", ID: "024354464aee1744e2c83fad50fc17a6", Level: LevelNotice,
		Fields:  []string{KeyVersion, KeyEnforcement, KeyGeneration},
		Meaning: "the daemon has started and enforces",
		Subject: "edgepolicyd @EDGEPOLICY_VERSION@ started",
		Text: `The daemon has read what it could, the kernel has the rules, and systemd was told
that it is ready. An inventory of all policies in force follows.`,
	}
	Stop = &Event{
		Name: "stop", ID: "f5dc18587bcf53c1ff9a6e21d70a7c7d", Level: LevelNotice,
		Fields:  []string{KeyVersion, KeyReason},
		Meaning: "the daemon has stopped; the rules stay in force",
		Subject: "edgepolicyd stopped",
		Text: `The daemon has ended. The rules that the kernel has stay in force, but nothing
changes them until it starts again: new pods are not enforced, or are held.`,
	}
	Restored = &Event{
		Name: "restored", ID: "f6e335824b7806f516265d23d0b0fb12", Level: LevelNotice,
		Fields:  []string{KeyGeneration, KeyCount, KeyDuration},
		Meaning: "the saved state was put into force at boot, before the network",
		Subject: "Saved policies put into force before the network",
		Text: "`edgepolicyd restore` has given the kernel what was known when the state was last\n" +
			"saved, so that no packet passes before the daemon runs.",
	}
	PolicyAdded = &Event{
		Name: "policy-added", ID: "4b69c464851f23f4da08392eec7cb587", Level: LevelNotice,
		Fields:  []string{KeyPolicy, KeySource, KeyFile, KeyHash, KeyEnforcement},
		Meaning: "a policy is in force that was not",
		Subject: "Policy @EDGEPOLICY_POLICY@ added",
		Text: `From now on this policy is in force, as the source @EDGEPOLICY_SOURCE@ has it. Its content
has the hash @EDGEPOLICY_HASH@.`,
	}
	PolicyChanged = &Event{
		Name: "policy-changed", ID: "ba6f7ea742bf77bec09dadb61ccbde75", Level: LevelNotice,
		Fields:  []string{KeyPolicy, KeySource, KeyFile, KeyHash, KeyEnforcement},
		Meaning: "a policy in force has another content",
		Subject: "Policy @EDGEPOLICY_POLICY@ changed",
		Text: `From now on this policy is in force with the content that has the hash
@EDGEPOLICY_HASH@, as the source @EDGEPOLICY_SOURCE@ has it.`,
	}
	PolicyRemoved = &Event{
		Name: "policy-removed", ID: "4b7bb7ff0a99ed3a13471a443112f782", Level: LevelNotice,
		Fields:  []string{KeyPolicy, KeySource, KeyFile, KeyHash, KeyEnforcement},
		Meaning: "a policy is no longer in force; the fields tell its last content",
		Subject: "Policy @EDGEPOLICY_POLICY@ removed",
		Text: `This policy is in force no more: its file is gone, or its source does not list it.
A pod that no other policy selects in a direction may do everything there. If this
is not intended, give the file back; the hash tells which content it had.`,
	}
	DocumentRejected = &Event{
		Name: "document-rejected", ID: "c51fbf0b0d5efcfcd98ab01edfdbdcbf", Level: slog.LevelWarn,
		Fields:  []string{KeyObject, KeyFile, KeyReason, KeyKept},
		Meaning: "a document can't be used",
		Subject: "Document refused: @EDGEPOLICY_OBJECT@ in @EDGEPOLICY_FILE@",
		Text: "The document is not valid, and nothing of it is used:\n" +
			"\n" +
			"@EDGEPOLICY_REASON@\n" +
			"\n" +
			"If an earlier version was in force it stays so. Mend the file; `edgepolicyd check FILE`\n" +
			"says the same without the daemon.",
	}
	RejectionEnded = &Event{
		Name: "rejection-ended", ID: "ac84144c0135718e7b6ea4732eb0224a", Level: LevelNotice,
		Fields:  []string{KeyObject, KeyFile, KeyReason, KeyKept},
		Meaning: "a document that was rejected is valid now, or gone",
		Subject: "Document refused no more: @EDGEPOLICY_OBJECT@ in @EDGEPOLICY_FILE@",
		Text:    `The document was mended or removed. Nothing is left to do.`,
	}
	GenerationApplied = &Event{
		Name: "generation-applied", ID: "44fd154c6ec4df9fa16da22515f55b69", Level: LevelNotice,
		Fields:  []string{KeyGeneration, KeyChanges, KeyDuration},
		Meaning: "the kernel has a new state of the rules",
		Subject: "Generation @EDGEPOLICY_GENERATION@ is in force",
		Text: `The kernel has accepted the rules that follow from all policies and pods known:
@EDGEPOLICY_CHANGES@. Events of policies that came before this one count from here on.`,
	}
	ApplyFailed = &Event{
		Name: "apply-failed", ID: "0f220dc32b98a46c6b2f8d5a1c08328d", Level: slog.LevelError,
		Fields:  []string{KeyGeneration, KeyReason},
		Meaning: "the kernel refused a change; what was in force stays",
		Subject: "The kernel refused a change of the rules",
		Text: "The rules that follow from the policies and pods known could not be given to the\n" +
			"kernel:\n" +
			"\n" +
			"@EDGEPOLICY_REASON@\n" +
			"\n" +
			"What was in force before stays in force. The daemon tries again. `edgepolicyd doctor`\n" +
			"looks for what could be the cause.",
	}
	ConnectionsCut = &Event{
		Name: "connections-cut", ID: "2c9ba0f40224c8785aabd2c2b5fed5f5", Level: LevelNotice,
		Fields:  []string{KeyCount, KeyGeneration},
		Meaning: "established connections are allowed no more, and were cut",
		Subject: "Established connections cut",
		Text: `A change of policies or pods denies connections that were established. Their packets
are dropped from now on; @EDGEPOLICY_COUNT@ of them were seen.`,
	}
	TableDrift = &Event{
		Name: "table-drift", ID: "71d48d7510c96907d7398ddec5ac7bc4", Level: slog.LevelWarn,
		Fields:  []string{KeyChanges, KeyProgram, KeyPID},
		Meaning: "another program changed the daemon's table",
		Subject: "Another program changed the rules",
		Text: `The daemon's nftables table is not as the daemon left it: @EDGEPOLICY_CHANGES@.
Who did it stands in EDGEPOLICY_PROGRAM and EDGEPOLICY_PID, where the kernel has told. The
table is put right at once. The cause should be found: usually it is the reload of a firewall
that flushes the whole rule set, and each time it leaves a gap.`,
	}
	TableRepaired = &Event{
		Name: "table-repaired", ID: "9e462738cc7171c1bf2e7c8f7b57a8c1", Level: LevelNotice,
		Fields:  []string{KeyGeneration, KeyDuration},
		Meaning: "the table is as it should be again",
		Subject: "The rules were put right",
		Text:    `What another program changed in the daemon's table is as it should be again.`,
	}
	SourceLost = &Event{
		Name: "source-lost", ID: "e15c09b07e3f0f2848460663fa26b945", Level: slog.LevelWarn,
		Fields:  []string{KeySource, KeyReason},
		Meaning: "a source can't be read; what it told last stays in force",
		Subject: "Source @EDGEPOLICY_SOURCE@ is lost",
		Text: `The source can't be asked or read: @EDGEPOLICY_REASON@.
What it told last stays in force; changes there are not seen until it is back.`,
	}
	SourceFound = &Event{
		Name: "source-found", ID: "fabd4e82f8b2d17396234273003361c5", Level: LevelNotice,
		Fields:  []string{KeySource, KeyReason},
		Meaning: "a source that was lost is back",
		Subject: "Source @EDGEPOLICY_SOURCE@ is back",
		Text:    `The source answers again, and what it tells counts.`,
	}
	Offline = &Event{
		Name: "offline", ID: "ce8fb8bbac48ab643f9ba980126c10c8", Level: slog.LevelWarn,
		Fields:  []string{KeySource, KeySince},
		Meaning: "a source on the network can't be reached: the gateway works from what it knows",
		Subject: "Offline: @EDGEPOLICY_SOURCE@ can't be reached",
		Text: `The gateway has no connection to @EDGEPOLICY_SOURCE@ since @EDGEPOLICY_SINCE@. All policies stay in
force as they were told last. This is normal at the edge; it needs attention only if the
connection should be there.`,
	}
	Online = &Event{
		Name: "online", ID: "bea9a89ec36fdb2c697e9af31a704d6c", Level: LevelNotice,
		Fields:  []string{KeySource, KeySince},
		Meaning: "a source on the network is reached again",
		Subject: "Online: @EDGEPOLICY_SOURCE@ is reached again",
		Text: `The connection to @EDGEPOLICY_SOURCE@ is back, and what it tells counts. It was missing since
@EDGEPOLICY_SINCE@.`,
	}
	PodHeld = &Event{
		Name: "pod-held", ID: "4b6c3e6b51db1775590438d352624f38", Level: slog.LevelWarn,
		Fields:  []string{KeyPod, KeyAddress, KeyReason},
		Meaning: "traffic of a pod that nobody described is held",
		Subject: "Traffic of a pod that nobody described is held",
		Text: "Packets come from or go to an address in the pods' ranges of which nobody has said what\n" +
			"pod it is, so that no policy can be applied. They are dropped until a source tells:\n" +
			"@EDGEPOLICY_REASON@. If the pod should be known, see whether its manifest or the kubelet names it;\n" +
			"if it is no pod, take its range out of `podRanges`.",
	}
	PodUnenforceable = &Event{
		Name: "pod-unenforceable", ID: "f96b52ed6fcde1e883de393e204ca302", Level: slog.LevelWarn,
		Fields:  []string{KeyPod, KeyReason},
		Meaning: "policies can't be enforced for a pod",
		Subject: "Policies can't be enforced for @EDGEPOLICY_POD@",
		Text:    `Policies select the pod, but they can't be enforced for it: @EDGEPOLICY_REASON@.`,
	}
	PodEnforceable = &Event{
		Name: "pod-enforceable", ID: "7c490f988bd6bb41fec529bf4beac218", Level: LevelNotice,
		Fields:  []string{KeyPod, KeyReason},
		Meaning: "policies are enforced again for a pod for which they could not be",
		Subject: "Policies are enforced for @EDGEPOLICY_POD@ again",
		Text:    `What stood against it is gone.`,
	}
	Flush = &Event{
		Name: "flush", ID: "49e2033fad55197cffca260b265652e8", Level: slog.LevelWarn,
		Fields:  []string{KeyUID},
		Meaning: "somebody had the daemon remove its tables: nothing is enforced",
		Subject: "Enforcement was ended by user @EDGEPOLICY_UID@",
		Text: "`edgepolicyd flush` has removed the rules on demand of the user with the id\n" +
			"@EDGEPOLICY_UID@. No policy is enforced until the daemon is reloaded or started again.",
	}
	Reload = &Event{
		Name: "reload", ID: "5e5cc5f72855dfadaa54b15c1596e0ac", Level: LevelNotice,
		Fields:  []string{KeyUID},
		Meaning: "somebody had the daemon read its sources",
		Subject: "Reload asked for by user @EDGEPOLICY_UID@",
		Text:    `The sources are read again now. What changed follows as events of its own.`,
	}
	Denied = &Event{
		Name: "denied", ID: "ab0b75f053e7e70b5fedab16121fcac9", Level: slog.LevelWarn,
		Fields:  []string{KeyPod, KeyDirection, KeyPolicy, KeySrc, KeySrcPod, KeyDst, KeyDstPod, KeyProtocol, KeyPort, KeyInterface, KeyCount, KeyWindow},
		Meaning: "packets of a flow were denied",
		Subject: "Denied: @EDGEPOLICY_DIRECTION@ of @EDGEPOLICY_POD@",
		Text: "Packets from @EDGEPOLICY_SRC@ to @EDGEPOLICY_DST@ (@EDGEPOLICY_PROTOCOL@) were denied, as none of the\n" +
			"policies that isolate the pod allows them: @EDGEPOLICY_POLICY@. The count is of packets that were\n" +
			"logged, which is limited. `edgepolicyd explain` says which rule would have had to allow them,\n" +
			"`edgepolicyd denied --suggest` prints one.",
	}
	WouldDeny = &Event{
		Name: "would-deny", ID: "5f79b1d05a4996ff68c06b9eeea7bba8", Level: LevelNotice,
		Fields:  []string{KeyPod, KeyDirection, KeyPolicy, KeySrc, KeySrcPod, KeyDst, KeyDstPod, KeyProtocol, KeyPort, KeyInterface, KeyCount, KeyWindow},
		Meaning: "packets of a flow passed that policies on trial would deny",
		Subject: "Would be denied: @EDGEPOLICY_DIRECTION@ of @EDGEPOLICY_POD@",
		Text: `Packets from @EDGEPOLICY_SRC@ to @EDGEPOLICY_DST@ (@EDGEPOLICY_PROTOCOL@) passed. If the policies on
trial were enforced they would have been denied: @EDGEPOLICY_POLICY@.`,
	}
	DeniedSuppressed = &Event{
		Name: "denied-suppressed", ID: "38b75c68320af411e3f2ee2039a583da", Level: slog.LevelWarn,
		Fields:  []string{KeyPod, KeyDirection, KeyCount, KeyWindow},
		Meaning: "more packets were denied than are told one by one",
		Subject: "@EDGEPOLICY_COUNT@ denied packets are not told one by one",
		Text: "More packets were denied, or would be if policies on trial were enforced, than the limits of\n" +
			"`audit.denied` let into the log. They were judged all the same, and are in the totals of the metrics.",
	}
	InventoryStarted = &Event{
		Name: "inventory-started", ID: "24b841d229d25913572466906d52a56b", Level: LevelNotice,
		Fields:  []string{KeyInventory, KeyTotal},
		Meaning: "an inventory begins: its lines tell what is in force now; changes that are logged later are newer than all of them",
		Subject: "Inventory of @EDGEPOLICY_TOTAL@ policies in force",
		Text: `The inventory @EDGEPOLICY_INVENTORY@ follows, a line for each policy. It changes
nothing: it tells whoever reads the log later what was in force at this moment.`,
	}
	InventoryEntry = &Event{
		Name: "inventory", ID: "28c3786506319a55e799ec1b63b52874", Level: LevelNotice,
		Fields:  []string{KeyPolicy, KeyHash, KeySource, KeyFile, KeyEnforcement, KeyInventory, KeyTotal},
		Meaning: "one policy in force, at the start and once a day",
		Subject: "In force: policy @EDGEPOLICY_POLICY@",
		Text: `One line of the inventory @EDGEPOLICY_INVENTORY@, which has @EDGEPOLICY_TOTAL@ lines. The policy
was in force when the inventory began.`,
	}
	InventoryComplete = &Event{
		Name: "inventory-complete", ID: "9956e2be2d7e5647145328b50056d0e8", Level: LevelNotice,
		Fields:  []string{KeyInventory, KeyCount, KeyHash},
		Meaning: "the end of an inventory: how many lines it has, and the hash over them",
		Subject: "Inventory complete: @EDGEPOLICY_COUNT@ policies in force",
		Text: `The inventory @EDGEPOLICY_INVENTORY@ has @EDGEPOLICY_COUNT@ lines. If the log has fewer, or the hash over
them is another, lines are missing or were changed.`,
	}
	Degraded = &Event{
		Name: "degraded", ID: "c99a4dc122ddeac5171a5b5268f52171", Level: slog.LevelWarn,
		Fields:  []string{KeyReason},
		Meaning: "enforcement is not as it should be",
		Subject: "Degraded: not everything is enforced as it should be",
		Text: "@EDGEPOLICY_REASON@\n" +
			"\n" +
			"`edgepolicyd status` tells the present state, `edgepolicyd doctor` what could be done.",
	}
	Healthy = &Event{
		Name: "healthy", ID: "3b1d53e2e1791506fe47f6f7371622ea", Level: LevelNotice,
		Fields:  []string{KeySince},
		Meaning: "enforcement is as it should be again",
		Subject: "Healthy again",
		Text:    `What was reported as degraded since @EDGEPOLICY_SINCE@ is over.`,
	}
	Recovered = &Event{
		Name: "recovered", ID: "e2adfe1e12ee2312b09f2ce76933cfd4", Level: LevelNotice,
		Fields:  []string{KeyReason, KeyPod, KeyGeneration, KeyAddress},
		Meaning: "something that degraded, apply-failed or pod-held told of is over",
		Subject: "Over: @EDGEPOLICY_REASON@",
		Text:    `What was told of before is over.`,
	}
	StateUnsaved = &Event{
		Name: "state-unsaved", ID: "f65e9bd0c778fa1a4b30e3f012c67d76", Level: slog.LevelWarn,
		Fields:  []string{KeyFile, KeyReason},
		Meaning: "the state can't be saved: a restart would begin with older knowledge",
		Subject: "The state can't be saved in @EDGEPOLICY_FILE@",
		Text: `Enforcement goes on, but after a restart without its sources the daemon would begin with
what was saved before. The cause: @EDGEPOLICY_REASON@. Usually the disk is full or read-only.`,
	}
	StateSaved = &Event{
		Name: "state-saved", ID: "a1e55b3313d1731f72f56976d2272bc3", Level: LevelNotice,
		Fields:  []string{KeyFile},
		Meaning: "the state is saved again",
		Subject: "The state is saved again",
		Text:    `What kept the state from being saved is gone.`,
	}
	MessagesLost = &Event{
		Name: "messages-lost", ID: "767ed287a60d7ce0889ebb7413b3a2f7", Level: slog.LevelWarn,
		Fields:  []string{KeyCount},
		Meaning: "messages are missing from the log here",
		Subject: "@EDGEPOLICY_COUNT@ messages were lost",
		Text: `The journal, or whatever reads standard error, did not take messages as fast as they came,
and the daemon does not wait for a log. What is in force is not affected. Whoever reads
this log as evidence: after this point trust the next inventory.`,
	}
)

// Events is the table of all events, in the order of the documentation.
var Events = []*Event{
	Start,
	Stop,
	Restored,
	PolicyAdded,
	PolicyChanged,
	PolicyRemoved,
	DocumentRejected,
	RejectionEnded,
	GenerationApplied,
	ApplyFailed,
	ConnectionsCut,
	TableDrift,
	TableRepaired,
	SourceLost,
	SourceFound,
	Offline,
	Online,
	PodHeld,
	PodUnenforceable,
	PodEnforceable,
	Flush,
	Reload,
	Denied,
	WouldDeny,
	DeniedSuppressed,
	InventoryStarted,
	InventoryEntry,
	InventoryComplete,
	Degraded,
	Healthy,
	Recovered,
	StateUnsaved,
	StateSaved,
	MessagesLost,
}
