"""What people use live: prompts on the command line, the chat, traces of a denoising."""
