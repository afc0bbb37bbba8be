// Runs one function of a module: node run.mjs MODULE FUNCTION
const [module, name] = process.argv.slice(2);
await (await import(module))[name]();
