package guest

// HookMain is the hook as a program.
var HookMain = hookMain
